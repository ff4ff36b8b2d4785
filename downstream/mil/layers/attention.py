"""Multi-head attention of queries over other tokens, of which some may be missing.

Source: HMSA of PatHME (hvcl/PatHME, `layers/hmsa.py`), whose local and global stage both consist of
it. Memory is that of one block of queries, however many keys there are.

Shape letters: B bags, Q queries, N keys, H heads, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from downstream.mil.padded_bags import MilError, masked_softmax

BLOCK_QUERIES = 512
"""Number of queries whose scores are in memory at a time."""


class MultiHeadAttention(nn.Module):
    """Attention of queries over keys; without residual and norm, which the models add.

    A query without any key gets 0.

    Args:
        width: width D.
        heads: number H of heads, a divisor of the width.
        recompute: whether `forward` computes its scores again for the backward pass, which saves
            their memory for long bags, rather than keep them.

    Raises:
        MilError: The width is no multiple of the heads.
    """

    def __init__(self, width: int, heads: int, *, recompute: bool = False) -> None:
        super().__init__()
        if width % heads:
            msg = f"width {width} and {heads} heads; the width is a multiple of the heads"
            raise MilError(msg)
        self.heads, self.recompute = heads, recompute
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, query_BQD: Tensor, key_BND: Tensor, is_present_BN: Tensor | None = None
    ) -> Tensor:
        """Return the attended values [B, Q, D].

        Args:
            query_BQD: tokens that attend.
            key_BND: tokens that are attended to; finite also where one is missing.
            is_present_BN: whether each key counts; all of them if None.
        """
        query_BHQd = self._by_head(self.query(query_BQD))
        key_BHNd, value_BHNd = map(self._by_head, self.key_value(key_BND).chunk(2, dim=-1))
        mask_B11N = None
        if is_present_BN is not None:
            mask_B11N = _open_where_empty(is_present_BN)[:, None, None, :]
        mixed = [
            self._attend(block_BHQd, key_BHNd, value_BHNd, mask_B11N)
            for block_BHQd in torch.split(query_BHQd, BLOCK_QUERIES, dim=2)
        ]
        out_BQD: Tensor = self.out(torch.cat(mixed, dim=2).transpose(1, 2).flatten(2))
        return _zero_where_empty(out_BQD, is_present_BN)

    def with_shares(
        self, query_BQD: Tensor, key_BND: Tensor, is_present_BN: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the attended values [B, Q, D] and the share of each key [B, Q, N], mean over H.

        The shares of a query add up to 1, or to 0 where no key is present. All scores are kept.
        """
        query_BHQd = self._by_head(self.query(query_BQD))
        key_BHNd, value_BHNd = map(self._by_head, self.key_value(key_BND).chunk(2, dim=-1))
        score_BHQN = query_BHQd @ key_BHNd.mT * query_BHQd.shape[-1] ** -0.5
        share_BHQN = masked_softmax(score_BHQN, _open_where_empty(is_present_BN)[:, None, None, :])
        mixed_BHQd = share_BHQN.to(value_BHNd.dtype) @ value_BHNd
        out_BQD: Tensor = self.out(mixed_BHQd.transpose(1, 2).flatten(2))
        return (
            _zero_where_empty(out_BQD, is_present_BN),
            _zero_where_empty(share_BHQN.mean(dim=1), is_present_BN),
        )

    def _attend(
        self, query_BHQd: Tensor, key_BHNd: Tensor, value_BHNd: Tensor, mask_B11N: Tensor | None
    ) -> Tensor:
        """Return the attended values of one block of queries [B, H, Q, D / H]."""
        parts = (query_BHQd, key_BHNd, value_BHNd, mask_B11N)
        if not self.recompute or not torch.is_grad_enabled():
            return F.scaled_dot_product_attention(*parts)
        mixed_BHQd: Tensor = checkpoint(F.scaled_dot_product_attention, *parts, use_reentrant=False)
        return mixed_BHQd

    def _by_head(self, x_BND: Tensor) -> Tensor:
        """Return tokens head by head [B, H, N, D / H]."""
        batch, tokens, width = x_BND.shape
        return x_BND.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)


def _open_where_empty(is_present_BN: Tensor) -> Tensor:
    """Return the mask with all keys present in bags without any: their softmax is undefined."""
    return is_present_BN | ~is_present_BN.any(dim=1, keepdim=True)


def _zero_where_empty(x_BQD: Tensor, is_present_BN: Tensor | None) -> Tensor:
    """Return the attended values, with 0 for bags without any key."""
    if is_present_BN is None:
        return x_BQD
    return x_BQD * is_present_BN.any(dim=1)[:, None, None]
