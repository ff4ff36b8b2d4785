"""The network of a region encoder: a coarse tile and two grids of finer ones, as two streams.

Source: PatHME (hvcl/PatHME): one backbone over features of tiles; learned prompts in every block of
the coarse stream only; hierarchical attention on top.

Shape letters: B regions, M mid tokens (side^2), N fine tokens, S tokens of a stream, E embedding
of the teacher, D width, P prompts.
"""

import functools
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import DistillError
from distill.recipes.student_settings import RegionStudent
from distill.students.hierarchy import Hierarchy, Joined, Level, by_parent
from downstream.mil.layers import MultiHeadAttention

MLP_RATIO = 4
# The frame of places: a region is so many units wide, whatever its grids.
FRAME = 16.0


@dataclass(frozen=True, kw_only=True)
class Region:
    """A coarse tile's features and those of the tiles under it, normalised.

    Attributes:
        coarse: [B, E].
        mid: [B, r, r, E].
        mid_there: which are there [B, r, r].
        fine: [B, R, R, E], R a multiple of r.
        fine_there: which are there [B, R, R].
    """

    coarse: Tensor
    mid: Tensor
    mid_there: Tensor
    fine: Tensor
    fine_there: Tensor

    def __post_init__(self) -> None:
        r, big = self.mid.shape[1], self.fine.shape[1]
        if r < 2 or big % r or big // r < 2:
            msg = (
                f"grids of {r} x {r} and {big} x {big} tiles in a region given; the first has 2 or "
                "more in a row, the second a multiple of it"
            )
            raise DistillError(msg)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Tokens of a grid before the blocks.

    Attributes:
        values: [B, S, D].
        mask: which are there [B, S].
    """

    values: Tensor
    mask: Tensor

    def at(self, index_BCS: Tensor) -> "Tokens":
        """Return the tokens at some places, one row for each of C choices: [B * C, S, D]."""
        rows_BC = torch.arange(len(index_BCS), device=index_BCS.device)[:, None, None]
        values, mask = self.values[rows_BC, index_BCS], self.mask[rows_BC, index_BCS]
        return Tokens(values=values.flatten(0, 1), mask=mask.flatten(0, 1))


@dataclass(frozen=True, kw_only=True)
class StreamOutputs:
    """Outputs of a stream.

    Attributes:
        cls: the class token [B, D].
        tokens: those of the grid [B, S, D].
        others: the region's own token and the prompts [B, P, D]; those of the coarse stream.
    """

    cls: Tensor
    tokens: Tensor
    others: Tensor


@dataclass(frozen=True, kw_only=True)
class RegionOutputs:
    """Outputs of the network for a whole region.

    Attributes:
        fine: of the fine stream.
        mid: of the coarse stream.
        joined: of hierarchical attention.
    """

    fine: StreamOutputs
    mid: StreamOutputs
    joined: Joined


class Block(nn.Module):
    """A transformer block over tokens of which some are not there.

    Args:
        width: D.
        heads: of attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(width, heads)
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, MLP_RATIO * width), nn.GELU(), nn.Linear(MLP_RATIO * width, width)
        )

    def forward(self, x_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """Return the tokens [B, S, D]."""
        normed_BSD = self.norm(x_BSD)
        x_BSD = x_BSD + self.attention(normed_BSD, normed_BSD, mask_BS)
        out_BSD: Tensor = x_BSD + self.mlp(self.mlp_norm(x_BSD))
        return out_BSD


class RegionNetwork(nn.Module):
    """Two streams through one backbone, joined by hierarchical attention.

    The fine stream holds the finest tiles; the coarse one the mid tiles, the region's own token
    and, new in each block, the prompts. Changed from PatHME: places are fixed sines in a frame that
    all grids share, so that any ratio of mpps fits and a crop keeps its place; each level has a
    learned vector; no drop-path.

    Args:
        settings: width, depth, heads, prompts.
        dim: E.
    """

    def __init__(self, settings: RegionStudent, dim: int) -> None:
        super().__init__()
        width = settings.width
        if width % 4 or width % settings.heads:
            msg = (
                f"width {width} given; it must be a multiple of 4, for the places, and of the "
                f"{settings.heads} heads"
            )
            raise DistillError(msg)
        self.width = width
        self.project = nn.Sequential(nn.Linear(dim, width), nn.GELU())
        self.levels = nn.Parameter(torch.randn(3, width) * 0.02)  # fine, mid, coarse
        self.classes = nn.Parameter(torch.randn(2, width) * 0.02)  # of the two streams
        self.hidden = nn.Parameter(torch.randn(width) * 0.02)  # instead of a token
        self.prompts = nn.Parameter(torch.randn(settings.depth, settings.prompts, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, settings.heads) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(width)
        self.hierarchy = Hierarchy(width, settings.heads, settings.attention_layers)

    def forward(self, region: Region, hidden: tuple[Tensor, Tensor] | None = None) -> RegionOutputs:
        """Run the network on a whole region.

        Args:
            region: normalised features.
            hidden: which fine [B, R^2] and which mid tokens [B, r^2] are hidden; none without it.
        """
        fine, mid, own_B1D = self.tokens(region)
        if hidden is not None:
            fine, mid = (
                self._hide(t, h, i)
                for i, (t, h) in enumerate(zip((fine, mid), hidden, strict=True))
            )
        low, high = self.fine_stream(fine), self.mid_stream(mid, own_B1D)
        side = region.mid.shape[1]
        level = Level(
            mid=high.tokens,
            mid_there=mid.mask,
            others=high.others,
            fine=by_parent(low.tokens.view(*region.fine.shape[:3], -1), side),
            fine_there=by_parent(region.fine_there, side),
        )
        return RegionOutputs(fine=low, mid=high, joined=self.hierarchy(level))

    def tokens(self, region: Region) -> tuple[Tokens, Tokens, Tensor]:
        """Return the tokens of the two grids, and the region's own [B, 1, D]."""
        fine = self._grid(region.fine, region.fine_there, 0)
        mid = self._grid(region.mid, region.mid_there, 1)
        own_BD = self.project(region.coarse) + self._places(1, 2)
        return fine, mid, own_BD[:, None]

    def _grid(self, x_BrrE: Tensor, mask_Brr: Tensor, level: int) -> Tokens:
        mask_BS = mask_Brr.flatten(1)
        # Features of tiles that are not there may be anything.
        x_BSE = torch.where(mask_BS[..., None], x_BrrE.flatten(1, 2), 0)
        values = self.project(x_BSE) + self._places(x_BrrE.shape[1], level)
        return Tokens(values=values, mask=mask_BS)

    def _hide(self, tokens: Tokens, hidden_BS: Tensor, level: int) -> Tokens:
        """Replace the hidden tokens by one learned value, at their places."""
        side = math.isqrt(hidden_BS.shape[1])
        instead_SD = (self.hidden + self._places(side, level)).to(tokens.values.dtype)
        values = torch.where(hidden_BS[..., None], instead_SD, tokens.values)
        return replace(tokens, values=values)

    def _places(self, side: int, level: int) -> Tensor:
        """Return vectors that encode a token's place and level [side^2, D]."""
        return self.levels[level] + places(side, self.width).to(self.levels.device)

    def fine_stream(self, tokens: Tokens) -> StreamOutputs:
        """Run the fine stream, whole or a crop."""
        x_BSD = torch.cat([self._class(0, tokens), tokens.values], dim=1)
        mask_BS = F.pad(tokens.mask, (1, 0), value=True)
        for block in self.blocks:
            x_BSD = block(x_BSD, mask_BS)
        x_BSD = self.norm(x_BSD)
        return StreamOutputs(cls=x_BSD[:, 0], tokens=x_BSD[:, 1:], others=x_BSD[:, :0])

    def mid_stream(self, tokens: Tokens, own_B1D: Tensor | None = None) -> StreamOutputs:
        """Run the coarse stream; a crop of it does not get the region's own token."""
        ahead = [self._class(1, tokens)] + ([] if own_B1D is None else [own_B1D])
        x_BSD = torch.cat([*ahead, tokens.values], dim=1)
        prompts, samples = self.prompts.shape[1], len(x_BSD)
        mask_BS = F.pad(tokens.mask, (prompts + len(ahead), 0), value=True)
        for block, prompts_PD in zip(self.blocks, self.prompts, strict=True):
            fresh_BPD = prompts_PD.to(x_BSD.dtype).expand(samples, -1, -1)
            both_BSD = block(torch.cat([fresh_BPD, x_BSD], dim=1), mask_BS)
            prompted_BPD, x_BSD = both_BSD.split([prompts, x_BSD.shape[1]], dim=1)
        x_BSD, prompted_BPD = self.norm(x_BSD), self.norm(prompted_BPD)
        return StreamOutputs(
            cls=x_BSD[:, 0],
            tokens=x_BSD[:, len(ahead) :],
            others=torch.cat([x_BSD[:, 1 : len(ahead)], prompted_BPD], dim=1),
        )

    def _class(self, stream: int, tokens: Tokens) -> Tensor:
        values = tokens.values
        return self.classes[stream].to(values.dtype).expand(len(values), 1, -1)


@functools.lru_cache(maxsize=16)
def places(side: int, width: int) -> Tensor:
    """Return sines of the centres of a grid's cells in the region's frame [side^2, width].

    Source: Vaswani et al. 2017, in two dimensions as in MAE and MoCo v3.
    """
    centre = (torch.arange(side, dtype=torch.float64) + 0.5) * (FRAME / side)
    waves = torch.arange(width // 4, dtype=torch.float64) / (width // 4)
    angle = centre[:, None] * 10000.0**-waves
    line = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1).float()


def crop_side(side: int, share: float) -> int:
    """Return the number of cells in a row of a crop: a share of the grid's, less than all.

    >>> crop_side(16, 6 / 16), crop_side(4, 3 / 4), crop_side(2, 3 / 4)
    (6, 3, 1)
    """
    return max(1, min(side - 1, math.ceil(share * side)))


def windows(samples: int, crops: int, side: int, part: int, generator: torch.Generator) -> Tensor:
    """Draw the cells of random squares, part x part of a grid, [B, crops, part^2]."""
    corner = torch.randint(
        0, side - part + 1, (2, samples, crops, 1, 1), generator=generator, device=generator.device
    )
    step = torch.arange(part, device=generator.device)
    cells = (corner[0] + step[:, None]) * side + corner[1] + step
    return cells.flatten(2)
