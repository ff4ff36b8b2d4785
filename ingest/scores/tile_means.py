"""Means of a map of the whole slide over the area of each tile."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ingest.grid import Grid, nested_sums

BoolArray = npt.NDArray[np.bool_]
Float32Array = npt.NDArray[np.float32]


def tile_means(
    values: Float32Array, scale: float, grids: Sequence[Grid], weights: BoolArray | None = None
) -> list[Float32Array]:
    """Return the mean of a map over the area of each tile, [grid.height, grid.width] per grid.

    Pixels that a tile covers in part count in part. NaN in the map and what lies outside it do not
    count; a tile without any value is NaN.

    Args:
        values: map of the whole slide [H, W].
        scale: side of one pixel of the map in level-0 pixels.
        grids: nested grids, finest first.
        weights: mask [H, W]; in tiles that hold any of these pixels, the mean is over them alone.
    """
    is_number = ~np.isnan(values)
    means = _means(values, is_number, scale, grids)
    if weights is None:
        return means
    weighted = _means(values, is_number & weights, scale, grids)
    return [np.where(np.isnan(w), m, w) for w, m in zip(weighted, means, strict=True)]


def _means(
    values: Float32Array, counted: BoolArray, scale: float, grids: Sequence[Grid]
) -> list[Float32Array]:
    areas = nested_sums(counted, scale, grids)
    sums = nested_sums(np.where(counted, values, np.float32(0)), scale, grids)
    means_by_grid = []
    for area, total in zip(areas, sums, strict=True):
        means: Float32Array = np.full(area.shape, np.nan, np.float32)
        # An area below a millionth of a pixel is what is left of rounding.
        np.divide(total, area, out=means, where=area > 1e-6, casting="same_kind")
        means_by_grid.append(means)
    return means_by_grid
