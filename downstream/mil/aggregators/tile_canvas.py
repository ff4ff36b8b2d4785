"""Places of a patient's tiles on one canvas, for aggregators that look at coordinates.

Slides have grids of their own, so that tiles of two slides may have the same place: they are laid
one below the other. At several mpps the grids nest, and so they do on the canvas.

Shape letters: N tiles.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Grid = NDArray[np.int64]


GAP = 16
"""Empty rows between two slides, of the coarsest level: more than a 7 x 7 kernel reaches, so that
no slide sees another as its neighbour."""


def stack_slides(grids: Sequence[Grid], *, gap: int = GAP) -> Grid:
    """Return the places of a patient's tiles at one mpp, slides one below the other.

    Args:
        grids: (grid_y, grid_x) [N_i, 2] of each slide, in an order that does not depend on chance
            (sorted slide ids): it is the order of the slides on the canvas.
        gap: empty rows between two slides.

    Returns:
        (y, x) [sum of N_i, 2], from 0 on.

    >>> stack_slides([np.array([[5, 5]]), np.array([[5, 5], [6, 5]])]).tolist()
    [[0, 0], [17, 0], [18, 0]]
    """
    return stack_levels([[grid] for grid in grids], [], gap=gap)


def stack_levels(
    slides: Sequence[Sequence[Grid]], ratios: Sequence[int], *, gap: int = GAP
) -> Grid:
    """Return the places of a patient's tiles at one mpp or several.

    Args:
        slides: for each slide, the grids of its levels, coarse to fine, (grid_y, grid_x) [N_i, 2].
        ratios: side of a tile in tiles of the next finer level; empty for one level.
        gap: empty rows of the coarsest level between two slides.

    Returns:
        Slide by slide and level by level: (y, x) [N, 2] for one level, else (level, y, x) [N, 3].

    >>> coarse, fine = np.array([[5, 5]]), np.array([[20, 21], [23, 23]])
    >>> stack_levels([[coarse, fine]], [4]).tolist()
    [[0, 0, 0], [1, 0, 1], [1, 3, 3]]
    """
    scales = np.cumprod([1, *ratios])
    placed, top = [], 0
    for grids in slides:
        if not sum(map(len, grids)):
            continue
        coarse = np.concatenate([g // scale for g, scale in zip(grids, scales, strict=True)])
        corner = coarse.min(axis=0)
        for level, (grid, scale) in enumerate(zip(grids, scales, strict=True)):
            moved = grid + (np.array([top, 0]) - corner) * scale
            placed.append(_with_level(moved, level) if ratios else moved)
        top += int(coarse[:, 0].max() - corner[0]) + 1 + gap
    return np.concatenate(placed).astype(np.int64)


def under_parents(grids: Sequence[Grid], ratios: Sequence[int]) -> list[NDArray[np.bool_]]:
    """Return whether each tile has ancestors up to the coarsest level, level by level.

    Args:
        grids: (grid_y, grid_x) of a slide's levels, coarse to fine.
        ratios: see `stack_levels`.

    >>> both = [np.array([[0, 0]]), np.array([[1, 1], [4, 0]])]
    >>> [keep.tolist() for keep in under_parents(both, [4])]
    [[True], [True, False]]
    """
    kept = [np.ones(len(grids[0]), dtype=np.bool_)]
    for above, below, ratio in zip(grids, grids[1:], ratios, strict=False):
        parent_keys = _place_numbers(above[kept[-1]])
        kept.append(np.isin(_place_numbers(below // ratio), parent_keys))
    return kept


def families(places: Grid, ratios: Sequence[int]) -> NDArray[np.int32]:
    """Return the number of each tile's family: a coarsest tile and all tiles under it.

    Half a family would look as if tissue were background, so whole families are drawn at random. At
    one level every tile is a family of its own.

    Args:
        places: places from `stack_levels`.
        ratios: see `stack_levels`.

    >>> families(np.array([[0, 0, 0], [0, 0, 1], [1, 0, 1], [1, 3, 7]]), [4]).tolist()
    [0, 1, 0, 1]
    """
    if not ratios:
        return np.arange(len(places), dtype=np.int32)
    scale_N1 = np.cumprod([1, *ratios])[places[:, 0]][:, None]
    numbers = np.unique(_place_numbers(places[:, 1:] // scale_N1), return_inverse=True)[1]
    return numbers.reshape(-1).astype(np.int32)


def _place_numbers(grid: Grid) -> Grid:
    """Return one number per place; the grid's indices are below 2^31."""
    keys: Grid = (grid[:, 0] << 32) | grid[:, 1]
    return keys


def _with_level(grid: Grid, level: int) -> Grid:
    """Return places (level, y, x) from places (y, x)."""
    return np.concatenate([np.full((len(grid), 1), level, dtype=np.int64), grid], axis=1)
