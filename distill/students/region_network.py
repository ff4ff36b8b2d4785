"""The network of a region encoder: a coarse tile and two grids of finer tiles, as two streams.

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
from distill.students.hierarchy import Hierarchy, HierarchyInputs, HierarchyOutputs, group_by_parent
from downstream.mil.layers import MultiHeadAttention

MLP_RATIO = 4
# The width of a region in units of the frame of places, whatever its grids.
FRAME = 16.0


@dataclass(frozen=True, kw_only=True)
class Region:
    """A coarse tile's features and those of the tiles under it, normalised.

    Attributes:
        coarse: features of the coarse tile [B, E].
        mid: features of the mid tiles [B, r, r, E].
        mid_there: true at the mid tiles that exist [B, r, r].
        fine: features of the fine tiles [B, R, R, E], R a multiple of r.
        fine_there: true at the fine tiles that exist [B, R, R].
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
        values: the tokens [B, S, D].
        mask: true at the tokens that exist [B, S].
    """

    values: Tensor
    mask: Tensor

    def at(self, index_BCS: Tensor) -> "Tokens":
        """Return the tokens at chosen places, one row for each of C choices: [B * C, S, D]."""
        rows_BC = torch.arange(len(index_BCS), device=index_BCS.device)[:, None, None]
        x_BCSD, mask = self.values[rows_BC, index_BCS], self.mask[rows_BC, index_BCS]
        return Tokens(values=x_BCSD.flatten(0, 1), mask=mask.flatten(0, 1))


@dataclass(frozen=True, kw_only=True)
class StreamOutputs:
    """Outputs of a stream.

    Attributes:
        cls: the class token [B, D].
        tokens: the tokens of the grid [B, S, D].
        others: the region's own token and the prompts [B, P, D]; empty for the fine stream.
    """

    cls: Tensor
    tokens: Tensor
    others: Tensor


@dataclass(frozen=True, kw_only=True)
class RegionOutputs:
    """Outputs of the network for a whole region.

    Attributes:
        fine: outputs of the fine stream.
        mid: outputs of the coarse stream.
        joined: outputs of hierarchical attention.
    """

    fine: StreamOutputs
    mid: StreamOutputs
    joined: HierarchyOutputs


class Block(nn.Module):
    """A transformer block over tokens of which some are missing.

    Args:
        width: width D of the tokens.
        heads: number of attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(width, heads)
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, MLP_RATIO * width), nn.GELU(), nn.Linear(MLP_RATIO * width, width)
        )

    def forward(self, x_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """Return the tokens [B, S, D] after the block."""
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
        settings: width, depth, heads and prompts.
        dim: width E of the features.
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
            hidden: true at the hidden fine [B, R^2] and mid tokens [B, r^2]; none if None.
        """
        fine, mid, own_B1D = self.tokens(region)
        if hidden is not None:
            fine, mid = (
                self._hide(t, h, i)
                for i, (t, h) in enumerate(zip((fine, mid), hidden, strict=True))
            )
        fine_outputs, mid_outputs = self.fine_stream(fine), self.mid_stream(mid, own_B1D)
        side = region.mid.shape[1]
        level = HierarchyInputs(
            mid=mid_outputs.tokens,
            mid_there=mid.mask,
            others=mid_outputs.others,
            fine=group_by_parent(fine_outputs.tokens.view(*region.fine.shape[:3], -1), side),
            fine_there=group_by_parent(region.fine_there, side),
        )
        return RegionOutputs(fine=fine_outputs, mid=mid_outputs, joined=self.hierarchy(level))

    def tokens(self, region: Region) -> tuple[Tokens, Tokens, Tensor]:
        """Return the fine tokens, the mid tokens, and the region's own token [B, 1, D]."""
        fine = self._grid(region.fine, region.fine_there, 0)
        mid = self._grid(region.mid, region.mid_there, 1)
        own_BD = self.project(region.coarse) + self._places(1, 2)
        return fine, mid, own_BD[:, None]

    def _grid(self, x_BrrE: Tensor, mask_Brr: Tensor, level: int) -> Tokens:
        mask_BS = mask_Brr.flatten(1)
        # Features of tiles that do not exist are arbitrary.
        x_BSE = torch.where(mask_BS[..., None], x_BrrE.flatten(1, 2), 0)
        x_BSD = self.project(x_BSE) + self._places(x_BrrE.shape[1], level)
        return Tokens(values=x_BSD, mask=mask_BS)

    def _hide(self, tokens: Tokens, hidden_BS: Tensor, level: int) -> Tokens:
        """Replace the hidden tokens by a learned vector with their places."""
        side = math.isqrt(hidden_BS.shape[1])
        replacement_SD = (self.hidden + self._places(side, level)).to(tokens.values.dtype)
        x_BSD = torch.where(hidden_BS[..., None], replacement_SD, tokens.values)
        return replace(tokens, values=x_BSD)

    def _places(self, side: int, level: int) -> Tensor:
        """Return the vectors that encode each token's place and level [side^2, D]."""
        sines: Tensor = _constant_sines(side, self.width).to(self.levels.device)
        places: Tensor = self.levels[level] + sines
        return places

    def fine_stream(self, tokens: Tokens) -> StreamOutputs:
        """Run the fine stream on the whole grid or a crop."""
        x_BSD = torch.cat([self._class(0, tokens), tokens.values], dim=1)
        mask_BS = F.pad(tokens.mask, (1, 0), value=True)
        for block in self.blocks:
            x_BSD = block(x_BSD, mask_BS)
        x_BSD = self.norm(x_BSD)
        return StreamOutputs(cls=x_BSD[:, 0], tokens=x_BSD[:, 1:], others=x_BSD[:, :0])

    def mid_stream(self, tokens: Tokens, own_B1D: Tensor | None = None) -> StreamOutputs:
        """Run the coarse stream on the whole grid, or on a crop without the region's own token."""
        first_tokens = [self._class(1, tokens)] + ([] if own_B1D is None else [own_B1D])
        x_BSD = torch.cat([*first_tokens, tokens.values], dim=1)
        prompts, samples = self.prompts.shape[1], len(x_BSD)
        mask_BS = F.pad(tokens.mask, (prompts + len(first_tokens), 0), value=True)
        for block, prompts_PD in zip(self.blocks, self.prompts, strict=True):
            fresh_BPD = prompts_PD.to(x_BSD.dtype).expand(samples, -1, -1)
            both_BSD = block(torch.cat([fresh_BPD, x_BSD], dim=1), mask_BS)
            prompted_BPD, x_BSD = both_BSD.split([prompts, x_BSD.shape[1]], dim=1)
        x_BSD, prompted_BPD = self.norm(x_BSD), self.norm(prompted_BPD)
        return StreamOutputs(
            cls=x_BSD[:, 0],
            tokens=x_BSD[:, len(first_tokens) :],
            others=torch.cat([x_BSD[:, 1 : len(first_tokens)], prompted_BPD], dim=1),
        )

    def _class(self, stream: int, tokens: Tokens) -> Tensor:
        x_BSD = tokens.values
        return self.classes[stream].to(x_BSD.dtype).expand(len(x_BSD), 1, -1)


@functools.lru_cache(maxsize=16)
def place_sines(side: int, width: int) -> Tensor:
    """Return the sines and cosines that encode the centres of a grid's cells [side^2, width].

    Source: Vaswani et al. 2017, in two dimensions as in MAE and MoCo v3.
    """
    centre = (torch.arange(side, dtype=torch.float64) + 0.5) * (FRAME / side)
    waves = torch.arange(width // 4, dtype=torch.float64) / (width // 4)
    angle = centre[:, None] * 10000.0**-waves
    line = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1).float()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _constant_sines(side: int, width: int) -> Tensor:
    """Return `place_sines`, which a compiled graph takes as a constant and does not trace."""
    return place_sines(side, width)


def crop_side(side: int, share: float) -> int:
    """Return the number of cells in a row of a crop: a share of the grid's row, less than all.

    >>> crop_side(16, 6 / 16), crop_side(4, 3 / 4), crop_side(2, 3 / 4)
    (6, 3, 1)
    """
    return max(1, min(side - 1, math.ceil(share * side)))


def crop_cells(
    samples: int, crops: int, side: int, part: int, generator: torch.Generator
) -> Tensor:
    """Draw the cells of random squares of part x part cells of a grid, [B, crops, part^2]."""
    corner = torch.randint(
        0, side - part + 1, (2, samples, crops, 1, 1), generator=generator, device=generator.device
    )
    step = torch.arange(part, device=generator.device)
    cells = (corner[0] + step[:, None]) * side + corner[1] + step
    return cells.flatten(2)
