"""ILRA: tiles exchange what they hold through a few latent vectors, a low-rank attention.

Shape letters: B bags, N tiles, D feature width, E width, R latent vectors (the rank), Q queries.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from downstream.mil.aggregators.dropout import Dropout
from downstream.mil.padded_bags import Aggregator, MilError, Pooled


class Ilra(Aggregator):
    """Iterative low-rank attention (Xiang and Zhang, ICLR 2023).

    Written from the paper and from jinxixiang/low_rank_wsi with the defaults of its class: two
    blocks, 8 heads, rank 2 (its configuration for Camelyon16 has 1, where tiles have no choice what
    to take), weights by Xavier's normal distribution, and layer norms as in the configuration. Its
    contrastive pre-training of the encoder is no part of it. Memory is O(N E). Difference: dropout
    after each block, of which the code has none.

    Args:
        width: feature width D; there is no first layer, the first block maps it to E.
        hidden: width E, a multiple of `heads`.
        dropout: dropout after each block.
        blocks: number of blocks.
        heads: attention heads.
        rank: number R of latent vectors of a block.
    """

    def __init__(
        self,
        width: int,
        *,
        hidden: int = 256,
        dropout: float = 0.0,
        blocks: int = 2,
        heads: int = 8,
        rank: int = 2,
    ) -> None:
        super().__init__()
        if hidden % heads or blocks < 1 or rank < 1:
            msg = (
                f"hidden={hidden}, heads={heads}, blocks={blocks}, rank={rank}; the width is a "
                "multiple of the heads, and there is a block and a latent vector at least"
            )
            raise MilError(msg)
        self.blocks = nn.ModuleList(
            LowRankBlock(width if at == 0 else hidden, hidden, heads, rank) for at in range(blocks)
        )
        self.dropout = Dropout(dropout)
        self.query = nn.Parameter(torch.empty(1, hidden))
        self.pooling = LatentAttention(hidden, hidden, hidden, heads)
        self.width = hidden
        nn.init.xavier_uniform_(self.query)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_normal_(part.weight)

    def pool(self, x_BND: Tensor, mask_BN: Tensor, coords_BNK: Tensor | None) -> Pooled:
        """Return the attended tiles; attention is that of the pooling, mean over heads."""
        del coords_BNK
        x_BNE = x_BND
        for block in self.blocks:
            x_BNE = self.dropout(block(x_BNE, mask_BN))
        query_B1E = self.query.to(x_BNE.dtype).expand(len(x_BNE), 1, -1)
        pooled_B1E, share_B1N = self.pooling(query_B1E, x_BNE, mask_BN, with_shares=True)
        return Pooled(embedding=pooled_B1E[:, 0], attention=share_B1N[:, 0])


class LowRankBlock(nn.Module):
    """Latent vectors attend to the tiles, then tiles to the latent vectors (eq. 16: GAB)."""

    def __init__(self, width: int, hidden: int, heads: int, rank: int) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.empty(1, rank, hidden))
        nn.init.xavier_uniform_(self.latent)
        self.forth = LatentAttention(hidden, width, hidden, heads, gated=True)
        self.back = LatentAttention(width, hidden, hidden, heads, gated=True)

    def forward(self, x_BND: Tensor, mask_BN: Tensor) -> Tensor:
        """Return the tiles [B, N, E]."""
        latent_BRE = self.latent.to(x_BND.dtype).expand(len(x_BND), -1, -1)
        latent_BRE, _ = self.forth(latent_BRE, x_BND, mask_BN)
        tiles_BNE: Tensor = self.back(x_BND, latent_BRE, None)[0]
        return tiles_BNE


class LatentAttention(nn.Module):
    """Multi-head attention between sets of different widths, with residual, norms and a gate.

    Args:
        query_width: width of the tokens that attend.
        key_width: width of the tokens that are attended to.
        hidden: width E of what comes out.
        heads: attention heads.
        gated: whether the output is multiplied by SiLU of a layer of the queries.
    """

    def __init__(
        self, query_width: int, key_width: int, hidden: int, heads: int, *, gated: bool = False
    ) -> None:
        super().__init__()
        self.query = nn.Linear(query_width, hidden)
        self.key = nn.Linear(key_width, hidden)
        self.value = nn.Linear(key_width, hidden)
        self.attention = nn.MultiheadAttention(hidden, heads, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(2))
        self.out = nn.Linear(hidden, hidden)
        self.gate = nn.Linear(query_width, hidden) if gated else None

    def forward(
        self,
        query_BQD: Tensor,
        key_BND: Tensor,
        mask_BN: Tensor | None,
        *,
        with_shares: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attended values [B, Q, E], and the share of each key [B, Q, N] if wanted.

        Args:
            query_BQD: tokens that attend.
            key_BND: tokens that are attended to.
            mask_BN: whether each key counts; None if all do.
            with_shares: whether shares, the mean over heads, are returned; else None.
        """
        query_BQE = self.query(query_BQD)
        attended_BQE, share_BQN = self.attention(
            query_BQE,
            self.key(key_BND),
            self.value(key_BND),
            key_padding_mask=None if mask_BN is None else ~mask_BN,
            need_weights=with_shares,
        )
        mixed_BQE = self.norms[0](query_BQE + attended_BQE)
        mixed_BQE = self.norms[1](mixed_BQE + F.relu(self.out(mixed_BQE)))
        if self.gate is not None:
            mixed_BQE = mixed_BQE * F.silu(self.gate(query_BQD))
        return mixed_BQE, share_BQN
