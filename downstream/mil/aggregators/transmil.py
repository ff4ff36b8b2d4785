"""TransMIL: two Nystrom attention layers with a positional convolution on the true grid between.

The released code lays tiles on a square in storage order and fills it up with the first tiles
again; here tiles are sorted by (grid_y, grid_x) and the convolution sees who really is a neighbour,
so that row order changes nothing.

Shape letters: B bags, N tiles, L = N + 1 tokens (class token first), D feature width, E width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from downstream.mil.aggregators.tile_grid import grid_conv, neighbours, raster_order
from downstream.mil.layers.nystrom import NystromAttention
from downstream.mil.padded_bags import Aggregator, MilError, Pooled, stem


class TransMil(Aggregator):
    """TransMIL (Shao et al. 2021, arXiv 2106.00908) by coordinates.

    On a full square of tiles in raster order, with a number of landmarks that divides N + 1, this
    is torchmil's TransMIL (with an identity as output layer). Elsewhere it differs: no tile is
    repeated, background is zero in the convolution, and see `NystromAttention`.

    Memory is O(N E + N landmarks heads); it needs no N x N, and no dense grid.

    Args:
        width: feature width D.
        hidden: width E, a multiple of `heads`.
        heads: attention heads.
        landmarks: Nystrom landmarks; None for E / 2 as in the paper.
        dropout: dropout after the first layer and in the attention.
    """

    coords = 2

    def __init__(
        self,
        width: int,
        *,
        hidden: int = 512,
        heads: int = 8,
        landmarks: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if hidden % heads:
            msg = f"hidden={hidden} with heads={heads}; the width is a multiple of the heads"
            raise MilError(msg)
        self.stem = stem(width, hidden, dropout)
        self.class_token = nn.Parameter(torch.randn(hidden))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(3))
        self.layers = nn.ModuleList(
            NystromAttention(
                hidden, heads=heads, landmarks=landmarks or hidden // 2, dropout=dropout
            )
            for _ in range(2)
        )
        self.positions = Positions(hidden)
        self.width = hidden

    def pool(self, x_BND: Tensor, mask_BN: Tensor, coords_BNK: Tensor | None) -> Pooled:
        """Return the class token after both layers.

        Attention is the class token's in the last layer (mean over heads), over the tiles alone,
        cut off at 0 and scaled to sum to 1.
        """
        assert coords_BNK is not None  # `forward` has checked it
        order_BN = raster_order(coords_BNK, mask_BN)
        mask_BN = mask_BN.gather(1, order_BN)
        bag = torch.arange(len(order_BN), device=order_BN.device)[:, None]
        # every bag has a tile, and tiles stand before masked rows
        x_BND, coords_BN2 = x_BND[bag, order_BN], coords_BNK[bag, order_BN]
        h_BNE = self.stem(x_BND) * mask_BN[..., None]
        token_B1E = self.class_token.to(h_BNE.dtype).expand(len(h_BNE), 1, -1)
        x_BLE = torch.cat([token_B1E, h_BNE], dim=1)
        mask_BL = F.pad(mask_BN, (1, 0), value=True)
        x_BLE = x_BLE + self.layers[0](self.norms[0](x_BLE), mask_BL)[0]
        placed_BNE = self.positions(x_BLE[:, 1:], mask_BN, coords_BN2)
        x_BLE = torch.cat([x_BLE[:, :1], placed_BNE], dim=1)
        changed_BLE, first_BL = self.layers[1](self.norms[1](x_BLE), mask_BL)
        token_BE = self.norms[2](x_BLE[:, 0] + changed_BLE[:, 0])
        sorted_BN = _shares(first_BL[:, 1:], mask_BN)
        attention_BN = torch.zeros_like(sorted_BN).scatter(1, order_BN, sorted_BN)
        return Pooled(embedding=token_BE, attention=attention_BN)


class Positions(nn.Module):
    """Pyramid position encoding: depthwise 7 x 7, 5 x 5 and 3 x 3 over the grid, added to a tile.

    The three kernels and the tile itself are one 7 x 7 kernel when it is applied.

    Args:
        width: width E.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kernels = nn.ModuleList(
            nn.Conv2d(width, width, size, padding=size // 2, groups=width) for size in (7, 5, 3)
        )

    def forward(self, x_BNE: Tensor, mask_BN: Tensor, coords_BN2: Tensor) -> Tensor:
        """Return the tiles plus the convolution over their surroundings, 0 in masked rows."""
        kernel_EK, bias_E = self.kernel()
        rows_RE = x_BNE[mask_BN]
        around_RE = grid_conv(rows_RE, kernel_EK, neighbours(coords_BN2, mask_BN, reach=3))
        placed_BNE = torch.zeros_like(x_BNE)
        placed_BNE[mask_BN] = rows_RE + around_RE + bias_E.to(rows_RE.dtype)
        return placed_BNE

    def kernel(self) -> tuple[Tensor, Tensor]:
        """Return the three kernels as a single kernel [E, 49], and its bias [E]."""
        seven, five, three = (part.get_parameter("weight")[:, 0] for part in self.kernels)
        kernel_E77 = seven + F.pad(five, [1] * 4) + F.pad(three, [2] * 4)
        # not stack().sum(): its gradients are views of one memory, and adding up the gradients of
        # several batches in place would then count each of them three times
        one, two, last = (part.get_parameter("bias") for part in self.kernels)
        return kernel_E77.flatten(1), one + two + last


def _shares(score_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """Return each score's share of its bag's sum; equal shares if no score is above 0."""
    kept_BN = score_BN.clamp(min=0) * mask_BN
    total_B1 = kept_BN.sum(dim=1, keepdim=True)
    equal_BN = mask_BN.to(kept_BN.dtype) / mask_BN.sum(dim=1, keepdim=True)
    return torch.where(total_B1 > 0, kept_BN / total_B1.clamp(min=1e-30), equal_BN)
