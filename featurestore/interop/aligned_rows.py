"""Pairs of rows of two lists of the same tiles by their coordinates, never by position alone."""

import numpy as np

from featurestore.interop.foreign_slide import Int64Array, InteropError
from featurestore.messages import counted


def order_of(xy: Int64Array, reference: Int64Array, subject: str) -> Int64Array | None:
    """Return the positions in `xy` [N, 2] of the `reference` rows [N, 2]; None if in order already.

    Raises:
        InteropError: the two are not the same set of tiles; `subject` names the first.

    >>> order_of(np.array([[0, 9], [4, 0]]), np.array([[4, 0], [0, 9]]), "a").tolist()
    [1, 0]
    """
    if np.array_equal(xy, reference):
        return None
    if len(xy) == len(reference):
        xy_order, reference_order = np.lexsort(xy.T), np.lexsort(reference.T)
        if np.array_equal(xy[xy_order], reference[reference_order]):
            order = np.empty(len(xy), np.int64)
            order[reference_order] = xy_order
            return order
    shared = len(_rows(xy) & _rows(reference))
    msg = (
        f"{subject}: its {counted(len(xy), 'tile', 'are')} not the {len(reference)} that are "
        "known of "
        f"this slide ({shared} are the same); it was cut otherwise"
    )
    raise InteropError(msg)


def _rows(xy: Int64Array) -> set[tuple[int, int]]:
    return {(int(x), int(y)) for x, y in xy}
