"""A transformer over tiles whose attention falls off with distance on the slide.

Time is O(N^2), as every tile meets every other one; memory is O(N x block), because scores are made
for a block of queries at a time and made again in the backward pass.

Shape letters: B bags, N tiles, L = N + 1 tokens (class token first), D feature width, E width,
H heads, Q queries of a block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from downstream.mil.aggregators.dropout import Dropout
from downstream.mil.padded_bags import Aggregator, MilError, Pooled, masked_softmax, stem

_BLOCK = 512


class PositionTransformer(Aggregator):
    """Pre-norm transformer with a distance bias in two dimensions; a class token is the embedding.

    The bias of head h is -2^(-8 h / H) x the Euclidean distance in tiles (ALiBi of Press et al.
    2022 in two dimensions, as in TITAN's slide encoder); the class token has distance 0 to all.
    Only differences of coordinates enter: moving a slide on its grid changes nothing, nor does row
    order. The last layer computes the class token alone.

    Args:
        width: feature width D.
        hidden: width E, a multiple of `heads`.
        layers: transformer layers, at least 1.
        heads: number H of attention heads.
        dropout: dropout after the first layer and in the transformer layers.
    """

    coords = 2

    def __init__(
        self,
        width: int,
        *,
        hidden: int = 256,
        layers: int = 2,
        heads: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if hidden % heads or layers < 1:
            msg = (
                f"hidden={hidden}, heads={heads}, layers={layers}; the width is a multiple of the "
                "heads, and there is at least one layer"
            )
            raise MilError(msg)
        self.stem = stem(width, hidden, dropout)
        self.class_token = nn.Parameter(torch.randn(hidden) * hidden**-0.5)
        self.layers = nn.ModuleList(Layer(hidden, heads, dropout) for _ in range(layers - 1))
        self.last = Layer(hidden, heads, dropout)
        self.norm = nn.LayerNorm(hidden)
        self.width = hidden

    def pool(self, x_BND: Tensor, mask_BN: Tensor, coords_BNK: Tensor | None) -> Pooled:
        """Return the class token; attention is that of the class token in the last layer."""
        assert coords_BNK is not None  # `forward` has checked it
        h_BNE = self.stem(x_BND)
        token_B1E = self.class_token.to(h_BNE.dtype).expand(len(h_BNE), 1, -1)
        x_BLE = torch.cat([token_B1E, h_BNE], dim=1)
        place_BL2 = F.pad(coords_BNK, (0, 0, 1, 0)).float()
        mask_BL = F.pad(mask_BN, (1, 0), value=True)
        for layer in self.layers:
            x_BLE = layer(x_BLE, x_BLE, place_BL2, mask_BL)
        token_BE = self.norm(self.last(x_BLE[:, :1], x_BLE, place_BL2, mask_BL)[:, 0])
        first_BN = self.last.attention.first(self.last.norm(x_BLE), mask_BL)[:, 1:]
        return Pooled(embedding=token_BE, attention=first_BN / first_BN.sum(1, keepdim=True))


class Layer(nn.Module):
    """Attention and a two-layer network, each after a norm and added to what came in."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = DistanceAttention(width, heads)
        self.network = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            Dropout(dropout),
            nn.Linear(2 * width, width),
        )
        self.dropout = Dropout(dropout)

    def forward(self, x_BQE: Tensor, all_BLE: Tensor, place_BL2: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the first Q tokens of a sequence, after attention to all tokens."""
        normed_BLE = self.norm(all_BLE)
        x_BQE = x_BQE + self.dropout(self.attention(normed_BLE, x_BQE.shape[1], place_BL2, mask_BL))
        changed_BQE: Tensor = x_BQE + self.dropout(self.network(x_BQE))
        return changed_BQE


class DistanceAttention(nn.Module):
    """Self-attention with a penalty on distance, by blocks of queries."""

    slope: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.heads = heads
        self.register_buffer("slope", 2.0 ** (-8 * torch.arange(1, heads + 1) / heads))

    def forward(self, x_BLE: Tensor, queries: int, place_BL2: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the first `queries` tokens [B, Q, E] after attention to all tokens."""
        q, k, v = self._qkv(x_BLE)
        blocks = []
        for start in range(0, queries, _BLOCK):
            part = (q[:, :, start : min(start + _BLOCK, queries)], k, v)
            blocks.append(
                checkpoint(self._block, *part, place_BL2, mask_BL, start, use_reentrant=False)
                if torch.is_grad_enabled()
                else self._block(*part, place_BL2, mask_BL, start)
            )
        mixed_BQE: Tensor = self.out(torch.cat(blocks, dim=2).transpose(1, 2).flatten(2))
        return mixed_BQE

    def first(self, x_BLE: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the class token's attention to each token [B, L], mean over heads."""
        q, k, _ = self._qkv(x_BLE)
        score_BHL = (q[:, :, :1] @ k.mT)[:, :, 0] * q.shape[-1] ** -0.5
        return masked_softmax(score_BHL, mask_BL[:, None]).mean(dim=1)

    def _qkv(self, x_BLE: Tensor) -> list[Tensor]:
        """Return queries, keys and values, each [B, H, L, E / H]."""
        parts = self.qkv(x_BLE).chunk(3, dim=-1)
        return [part.view(*part.shape[:2], self.heads, -1).transpose(1, 2) for part in parts]

    def _block(
        self, q: Tensor, k: Tensor, v: Tensor, place_BL2: Tensor, mask_BL: Tensor, start: int
    ) -> Tensor:
        """Return the attended values of one block of queries."""
        place_BQ2 = place_BL2[:, start : start + q.shape[2]]
        apart_BQL = torch.linalg.vector_norm(place_BQ2[:, :, None] - place_BL2[:, None], dim=-1)
        apart_BQL[:, :, 0] = 0
        if start == 0:
            apart_BQL[:, 0] = 0
        bias = -self.slope[:, None, None] * apart_BQL[:, None]
        bias = bias.masked_fill(~mask_BL[:, None, None], -torch.inf).to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
