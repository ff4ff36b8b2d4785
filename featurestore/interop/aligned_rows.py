"""Pairing rows of two lists of the same tiles by their coordinates, never by position alone."""

import numpy as np

from featurestore.interop.foreign_slide import Int64Array, InteropError


def order_of(xy: Int64Array, wanted: Int64Array, what: str) -> Int64Array | None:
    """Positions in `xy` [N, 2] of the rows of `wanted` [N, 2]; None if they are the same already.

    Raises:
        InteropError: the two are not the same set of tiles; `what` says whose they are.

    >>> order_of(np.array([[0, 9], [4, 0]]), np.array([[4, 0], [0, 9]]), "a").tolist()
    [1, 0]
    """
    if np.array_equal(xy, wanted):
        return None
    if len(xy) == len(wanted):
        mine, theirs = np.lexsort(xy.T), np.lexsort(wanted.T)
        if np.array_equal(xy[mine], wanted[theirs]):
            order = np.empty(len(xy), np.int64)
            order[theirs] = mine
            return order
    shared = len(_rows(xy) & _rows(wanted))
    msg = (
        f"{what}: its {len(xy)} tiles are not the {len(wanted)} that are known of this slide "
        f"({shared} are the same); it was cut otherwise"
    )
    raise InteropError(msg)


def _rows(xy: Int64Array) -> set[tuple[int, int]]:
    return {(int(x), int(y)) for x, y in xy}
