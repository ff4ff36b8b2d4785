"""Nested tile grids, as pure arithmetic.

All grids of a slide are anchored at level 0 and the side of a coarse tile is a whole multiple of
the finest tile's side in level-0 pixels, so a 2.0 mpp tile is exactly 4 x 4 tiles of 0.5 mpp. So is
the step from one tile to the next, which is shorter than the side where tiles overlap: the 4 x 4
cells that share a coarse cell's corner then lie in its tile, and do not fill it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from ingest.errors import SlideError

MPP_TOLERANCE = 0.02

BoolArray = npt.NDArray[np.bool_]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The grid of one slide at one mpp.

    Attributes:
        mpp: microns per pixel of the lake's tiles.
        effective_mpp: microns per pixel that the tiles have; within 2 % of `mpp`.
        tile_px: side of a stored tile in pixels.
        side_px: side of a tile in level-0 pixels.
        step_px: level-0 pixels from one tile to the next; `side_px` unless tiles overlap.
        width: number of tiles in a row, all that begin on the slide; the last may reach beyond it.
        height: number of rows.
        ratio: number of tiles of the finest grid along one side of a tile of this grid.
    """

    mpp: float
    effective_mpp: float
    tile_px: int
    side_px: int
    step_px: int
    width: int
    height: int
    ratio: int


def plan_grids(
    size_px: tuple[int, int],
    slide_mpp: float,
    tile_px: int,
    ratios: Mapping[float, int],
    *,
    stride_px: int | None = None,
) -> dict[float, Grid]:
    """Return the grids of a slide.

    Where a whole downsampling is within 2 % of the lake's mpp, it is taken: tiles at a stored
    level are then not resampled (0.499 mpp read as 0.5).

    Args:
        size_px: width and height of level 0.
        slide_mpp: microns per pixel of level 0.
        tile_px: side of a stored tile in pixels.
        ratios: the mpps of the lake, finest first, with their ratio to the finest.
        stride_px: pixels from one tile to the next; `tile_px` if None.

    Raises:
        SlideError: the slide is coarser than the finest mpp.

    >>> grids = plan_grids((2220, 2967), 0.499, 256, {0.5: 1, 2.0: 4})
    >>> [(g.side_px, g.width, g.height, round(g.effective_mpp, 3)) for g in grids.values()]
    [(256, 9, 12, 0.499), (1024, 3, 3, 1.996)]
    """
    finest = next(iter(ratios))
    scale = finest / slide_mpp
    whole = max(1, round(scale))
    if scale < 1 - MPP_TOLERANCE:
        msg = (
            f"the slide has {slide_mpp:.4g} mpp, coarser than the {finest} mpp asked; "
            "pixels are never made up"
        )
        raise SlideError(msg)
    snapped = abs(scale / whole - 1) <= MPP_TOLERANCE
    by = whole if snapped else scale
    side = round(tile_px * by)
    step = side if stride_px is None else max(1, round(stride_px * by))
    return {
        mpp: Grid(
            mpp=mpp,
            effective_mpp=slide_mpp * side * ratio / tile_px,
            tile_px=tile_px,
            side_px=side * ratio,
            step_px=step * ratio,
            width=math.ceil(size_px[0] / (step * ratio)),
            height=math.ceil(size_px[1] / (step * ratio)),
            ratio=ratio,
        )
        for mpp, ratio in ratios.items()
    }


def tissue_shares(mask: BoolArray, scale: float, grids: Sequence[Grid]) -> list[Float32Array]:
    """Return the share of each tile that is tissue, [grid.height, grid.width] per grid.

    Args:
        mask: tissue of the whole slide at any resolution.
        scale: side of one pixel of the mask in level-0 pixels.
        grids: nested grids, finest first. What lies outside the slide counts as no tissue.
    """
    return [
        np.clip(sums / (grid.side_px / scale) ** 2, 0, 1).astype(np.float32)
        for grid, sums in zip(grids, nested_sums(mask, scale, grids), strict=True)
    ]


def nested_sums(
    values: npt.NDArray[np.float32] | BoolArray, scale: float, grids: Sequence[Grid]
) -> list[Float64Array]:
    """Return `tile_sums` of nested grids, finest first: a coarse tile has its children's sum."""
    if grids[0].step_px != grids[0].side_px:
        return [tile_sums(values, scale, grid) for grid in grids]
    finest = tile_sums(values, scale, grids[0])
    sums = []
    for grid in grids:
        step = grid.ratio // grids[0].ratio
        whole = np.zeros((grid.height * step, grid.width * step))
        whole[: finest.shape[0], : finest.shape[1]] = finest
        sums.append(whole.reshape(grid.height, step, grid.width, step).sum(axis=(1, 3)))
    return sums


def tile_sums(
    values: npt.NDArray[np.float32] | BoolArray, scale: float, grid: Grid
) -> Float64Array:
    """Return the integral over each tile, [grid.height, grid.width], in pixels of the map.

    Pixels that a tile covers in part count in part; what lies outside the map counts as 0.

    Args:
        values: [H, W] map of the whole slide, without NaN.
        scale: side of one pixel of the map in level-0 pixels.
        grid: grid of the tiles.
    """
    # A summed-area table read between its entries gives exact areas at any ratio of the two grids.
    total = cv2.integral(values.astype(np.float32), sdepth=cv2.CV_64F)
    side, step = grid.side_px / scale, grid.step_px / scale
    rows = _over_tiles(total, grid.height, side, step)
    return _over_tiles(rows.T, grid.width, side, step).T


def area_means(
    values: BoolArray, scale: float, shape: tuple[int, int], to_scale: float
) -> Float64Array:
    """Return a map of a whole slide at another resolution, by the mean over each new pixel.

    Args:
        values: map of the slide [h, w].
        scale: side of one pixel of the map in level-0 pixels.
        shape: height and width of the result; 0 where a pixel lies outside the map.
        to_scale: side of one pixel of the result in level-0 pixels.
    """
    side = to_scale / scale
    sums, areas = (
        _over_tiles(_over_tiles(total, shape[0], side, side).T, shape[1], side, side).T
        for total in (
            cv2.integral(part.astype(np.float32), sdepth=cv2.CV_64F)
            for part in (values, np.ones_like(values))
        )
    )
    means: Float64Array = sums / np.maximum(areas, 1e-9)
    return means


def _over_tiles(table: Float64Array, count: int, side: float, step: float) -> Float64Array:
    start = np.arange(count, dtype=np.float64) * step
    last = float(len(table) - 1)
    over: Float64Array = _between(table, np.minimum(start + side, last))
    return over - _between(table, np.minimum(start, last))


def _between(
    table: npt.NDArray[np.float64], at: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    low = np.minimum(at.astype(np.int64), len(table) - 2)
    part = (at - low)[:, None]
    mixed: Float64Array = table[low] * (1 - part) + table[low + 1] * part
    return mixed


def keep_tiles(
    shares: Sequence[Float32Array], grids: Sequence[Grid], least: float | Sequence[float]
) -> list[BoolArray]:
    """Return the kept tiles of each grid, finest first; `least` may have a value for each grid.

    A tile is kept for its own tissue, or because a finer tile inside it is kept: every kept tile
    then has its parent, and a missing child means background.
    """
    leasts = [least] * len(shares) if isinstance(least, float | int) else least
    kept = [share >= part for share, part in zip(shares, leasts, strict=True)]
    for coarse in range(1, len(grids)):
        step = grids[coarse].ratio // grids[0].ratio
        height, width = kept[coarse].shape
        fine = np.zeros((height * step, width * step), bool)
        fine[: kept[0].shape[0], : kept[0].shape[1]] = kept[0]
        kept[coarse] |= fine.reshape(height, step, width, step).any(axis=(1, 3))
    return kept
