"""Views of a tile for the student: turned, flipped and restained at random; targets do not change.

Tissue has no upright direction and stains differ between laboratories, so views teach invariances
without running a teacher. A cached grid of targets is turned with the pixels. Views are computed on
the device of the pixels, from numbers drawn on the CPU.

Shape letters: B samples, C channels, H W pixels, S stains, h w a grid, D embedding.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.recipes.recipe import Views
from ingest import LEAST_LIGHT, STAIN_UNMIXING, STAIN_VECTORS

MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
TURNS = 8
GREY = (0.299, 0.587, 0.114)


def sized(pixels_BHWC: Tensor, side_px: int) -> Tensor:
    """Resize tiles uint8 [B, H, W, C] to squares uint8 [B, C, H, W], exactly as in `extract`."""
    x_BCHW = pixels_BHWC.permute(0, 3, 1, 2)
    if x_BCHW.shape[2] == side_px == x_BCHW.shape[3]:
        return x_BCHW
    if x_BCHW.device.type == "cpu":
        return F.interpolate(x_BCHW, (side_px, side_px), mode="bicubic", antialias=True)
    # GPUs can't resize integers; this differs by one grey level at most.
    resized = F.interpolate(x_BCHW.float(), (side_px, side_px), mode="bicubic", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


def normalised(x_BCHW: Tensor) -> Tensor:
    """Convert pixels, uint8 or 0..1, to the student's input: normalised float32, channels last."""
    x = x_BCHW.float() / 255 if x_BCHW.dtype == torch.uint8 else x_BCHW
    mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (MEAN, STD))
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, kw_only=True)
class DrawnView:
    """One view of each tile of a batch.

    Attributes:
        pixels: the student's input, float32 [B, C, H, W].
        turns: index among the eight symmetries of a square, for each tile [B], on the CPU.
        shifts: shift down and across in tokens [B, 2], before the turn; None if there is none.
    """

    pixels: Tensor
    turns: Tensor
    shifts: Tensor | None = None


def draw(
    x_BCHW: Tensor,
    views: Views,
    generator: torch.Generator,
    *,
    stride_px: int = 0,
    mosaics: bool = False,
) -> DrawnView:
    """Draw a random view of sized uint8 tiles.

    Args:
        x_BCHW: the tiles, or mosaics of 2 x 2 tiles.
        views: sizes of the changes.
        generator: generator of random draws, on the CPU.
        stride_px: side in pixels of the square of a token, for shifts; no shifts if 0.
        mosaics: whether the tiles are mosaics, in which shifts go down and to the right.
    """
    samples = len(x_BCHW)
    turns = torch.zeros(samples, dtype=torch.int64)
    if views.dihedral:
        turns = torch.randint(0, TURNS, (samples,), generator=generator)
    light, shifts_B2 = x_BCHW, None
    if views.shift and stride_px:
        side_px = x_BCHW.shape[2] // (2 if mosaics else 1)
        most = side_px // stride_px - 1
        drawn_B2 = torch.randn(samples, 2, generator=generator) * views.shift
        shifts_B2 = drawn_B2.round().clamp(-most, most).long()
        if mosaics:
            shifts_B2 = shifts_B2.abs()
            light = shifted(light, shifts_B2 * stride_px)[:, :, :side_px, :side_px]
        else:
            light = shifted(light, shifts_B2 * stride_px)
    if views.stain:
        light = restained(light, views.stain, generator)
    if views.brightness:
        light = recoloured(light, views.brightness, generator)
    pixels = normalised(turned(light, turns, axes=(2, 3)))
    return DrawnView(pixels=pixels, turns=turns, shifts=shifts_B2)


def mosaic(tiles: Sequence[Tensor], *, axes: tuple[int, int]) -> Tensor:
    """Join tiles with those to the right, below, and below to the right, along two axes.

    >>> mosaic([torch.full((1, 1, 1), n) for n in range(4)], axes=(1, 2))[0].tolist()
    [[0, 1], [2, 3]]
    """
    own, right, below, diagonal = tiles
    down, across = axes
    upper, lower = torch.cat([own, right], across), torch.cat([below, diagonal], across)
    return torch.cat([upper, lower], down)


def shifted(x_BCHW: Tensor, shifts_B2: Tensor) -> Tensor:
    """Shift each tile up and to the left by pixels [B, 2], mirrored at its border.

    The pixel at (i, j) is that of (i + down, j + across) before, as a window that moves down and
    across sees it.
    """
    side = x_BCHW.shape[2]
    place_B2S = torch.arange(side) + shifts_B2[..., None]
    place_B2S = torch.where(place_B2S < 0, -1 - place_B2S, place_B2S)
    place_B2S = torch.where(place_B2S >= side, 2 * side - 1 - place_B2S, place_B2S)
    rows_BS, columns_BS = place_B2S.to(x_BCHW.device).unbind(dim=1)
    samples = torch.arange(len(x_BCHW), device=x_BCHW.device)[:, None, None]
    moved_BHWC = x_BCHW[samples, :, rows_BS[:, :, None], columns_BS[:, None, :]]
    return moved_BHWC.permute(0, 3, 1, 2)


def shifted_cells(shifts_B2: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return each token's place before a shift [B, side^2], and whether it is inside the tile.

    Places outside are 0.
    """
    place_B2S = torch.arange(side) + shifts_B2[..., None]
    inside_B2S = (place_B2S >= 0) & (place_B2S < side)
    (rows, columns), (has_row, has_column) = place_B2S.unbind(1), inside_B2S.unbind(1)
    is_inside = (has_row[:, :, None] & has_column[:, None, :]).flatten(1)
    cells = (rows[:, :, None] * side + columns[:, None, :]).flatten(1)
    return torch.where(is_inside, cells, 0), is_inside


def turned(x: Tensor, turns_B: Tensor, *, axes: tuple[int, int]) -> Tensor:
    """Turn each sample by a symmetry of the square, in the plane of two axes of equal length.

    Symmetry t is a flip along the second axis if t >= 4, then t % 4 quarter turns.
    """
    turned_samples = torch.empty_like(x)
    for turn in sorted(set(turns_B.tolist())):
        at = (turns_B == turn).nonzero()[:, 0].to(x.device)
        part = x[at].flip(axes[1]) if turn >= 4 else x[at]
        turned_samples[at] = torch.rot90(part, turn % 4, axes)
    return turned_samples


@functools.lru_cache(maxsize=16)
def moved_places(side: int) -> Tensor:
    """Return the place of each cell of a grid after each symmetry [8, side * side]."""
    cells = torch.arange(side * side).view(1, side, side).expand(TURNS, side, side)
    source_cells = turned(cells.contiguous(), torch.arange(TURNS), axes=(1, 2)).flatten(1)
    return source_cells.argsort(dim=1)


def restained(x_BCHW: Tensor, size: float, generator: torch.Generator) -> Tensor:
    """Scale each stain by 1 +- size and shift it by +- size; return pixels 0..1.

    Source: as in `ingest.stain`, which computes the stain variants of teachers' inputs.
    """
    samples = len(x_BCHW)
    scale_BS, shift_BS = (
        (torch.rand(samples, 3, generator=generator) * 2 - 1) * size for _ in range(2)
    )
    stains, apart = (torch.from_numpy(a).float() for a in (STAIN_VECTORS, STAIN_UNMIXING))
    # Separating, scaling and mixing stains is one 3 x 3 matrix and one vector for each tile.
    mixed_BCC = (apart * (1 + scale_BS)[:, None, :]) @ stains
    density_BCN = _density(x_BCHW).flatten(2)
    moved_BCN = mixed_BCC.mT.to(x_BCHW.device) @ density_BCN
    moved_BCN += (shift_BS @ stains)[..., None].to(x_BCHW.device)
    light = (moved_BCN * -_LN10).exp_().clamp_(0, 1)
    return light.view(x_BCHW.shape)


_LN10 = 2.302585092994046


def _density(x_BCHW: Tensor) -> Tensor:
    """Return the optical density to base 10, contiguous."""
    if x_BCHW.dtype == torch.uint8:
        # A byte has 256 values: a table is many times as fast as logarithms.
        table = -(torch.arange(256) / 255).clamp_min(LEAST_LIGHT).log10()
        return table.to(x_BCHW.device)[x_BCHW.contiguous().int()]
    return -x_BCHW.contiguous().clamp_min(LEAST_LIGHT).log10()


def recoloured(x_BCHW: Tensor, size: float, generator: torch.Generator) -> Tensor:
    """Scale brightness, contrast and saturation by 1 +- size each; return pixels 0..1."""
    light = x_BCHW.float() / 255 if x_BCHW.dtype == torch.uint8 else x_BCHW
    factors = 1 + (torch.rand(3, len(light), 1, 1, 1, generator=generator) * 2 - 1) * size
    bright, contrast, saturation = factors.to(light.device)
    light = light * bright
    weights = torch.tensor(GREY, device=light.device)[:, None, None]
    grey = (light * weights).sum(dim=1, keepdim=True)
    mean = grey.mean(dim=(2, 3), keepdim=True)
    light = (light - mean) * contrast + mean
    grey = (grey - mean) * contrast + mean
    mixed: Tensor = ((light - grey) * saturation + grey).clamp(0, 1)
    return mixed


def cropped(
    x_BCHW: Tensor, side_px: int, area: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Crop one random square of each tile, resized to `side_px`; return pixels 0..1.

    Args:
        x_BCHW: pixels, uint8 or 0..1.
        side_px: side of the crops in pixels.
        area: least and greatest share of the tile's area.
        generator: generator of random draws, on the CPU.
    """
    light = x_BCHW.float() / 255 if x_BCHW.dtype == torch.uint8 else x_BCHW
    samples = len(light)
    share_B = torch.empty(samples).uniform_(*area, generator=generator).sqrt()
    centre_B2 = (torch.rand(samples, 2, generator=generator) * 2 - 1) * (1 - share_B)[:, None]
    theta_B23 = torch.zeros(samples, 2, 3)
    theta_B23[:, 0, 0] = theta_B23[:, 1, 1] = share_B
    theta_B23[:, :, 2] = centre_B2
    shape = [samples, light.shape[1], side_px, side_px]
    sampling_grid = F.affine_grid(theta_B23.to(light.device), shape, align_corners=False)
    crops: Tensor = F.grid_sample(light, sampling_grid, align_corners=False, padding_mode="border")
    return crops
