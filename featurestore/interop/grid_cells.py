"""Grid cells for tiles that were cut by others, so that each gets a key of its own.

Others begin a grid at each contour, or let tiles overlap. A cell of the tile's side may then hold
two tiles, so the step of the grid is halved until none does. Coordinates stay as they are.
"""

from dataclasses import dataclass

import numpy as np

from featurestore.ids import MAX_GRID
from featurestore.interop.foreign_slide import Int64Array, InteropError
from featurestore.messages import counted, listing

MAX_PX = 2**31 - 1
SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Cells:
    """The grid chosen for one slide.

    Attributes:
        step_px: level-0 pixels between neighbouring cells.
        y: row of each tile's cell [N].
        x: column of each tile's cell [N].
    """

    step_px: int
    y: Int64Array
    x: Int64Array


def choose_cells(xy: Int64Array, side_px: int) -> Cells:
    """Return the coarsest grid (side, side / 2, ...) with at most one tile in each cell.

    Args:
        xy: level-0 coordinates [N, 2].
        side_px: side of a tile in level-0 pixels.

    Raises:
        InteropError: a coordinate is negative or beyond 2^31, two tiles are at the same place, or
            a grid as fine as the tiles need has more than 16,384 cells along a side.

    >>> choose_cells(np.array([[0, 0], [300, 0], [400, 0]]), 256).step_px
    128
    """
    _check(xy)
    step = side_px
    while step:
        cells = xy // step
        if cells.size and cells.max() >= MAX_GRID:
            msg = (
                f"tiles overlap so much that their keys need a grid of {step} px, more than "
                f"{MAX_GRID} cells along the slide; import it at a coarser stride"
            )
            raise InteropError(msg)
        if len(np.unique(cells[:, 1] * MAX_GRID + cells[:, 0])) == len(xy):
            return Cells(step_px=step, y=cells[:, 1], x=cells[:, 0])
        step //= 2
    msg = f"no grid separates {counted(len(xy), 'tile')} of {side_px} px"
    raise InteropError(msg)


def _check(xy: Int64Array) -> None:
    if not xy.size:
        return
    if xy.min() < 0 or xy.max() > MAX_PX:
        worst = xy[((xy < 0) | (xy > MAX_PX)).any(axis=1)][0]
        msg = f"a tile is at {tuple(worst.tolist())}, outside of any slide"
        raise InteropError(msg)
    places, counts = np.unique(xy, axis=0, return_counts=True)
    twice = places[counts > 1]
    if len(twice):
        shown = listing([tuple(place) for place in twice.tolist()], SHOWN)
        msg = (
            f"several tiles lie at {counted(len(twice), 'place')} (x, y): {shown}; each must be "
            "one tile"
        )
        raise InteropError(msg)
