"""Sections of tissue on one slide: groups of tiles with a gap of glass between them.

Shape letters: N tiles of a slide.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

#: Tiles that are less than this apart belong to one section: about a glass gap between sections.
GAP_UM = 500.0
#: Smaller pieces, by their share of the slide's tiles, go to the section next to them.
LEAST_SHARE = 0.05

Int64Array = npt.NDArray[np.int64]


def sections_of(cells_N2: Int64Array, *, tile_um: float, gap_um: float = GAP_UM) -> Int64Array:
    """Return the number of each tile's section [N], from left to right by the sections' middles.

    Tiles belong together if a way of steps shorter than the gap leads from one to the other. A
    piece with few tiles is no section: its tiles go to the section that lies nearest.

    Args:
        cells_N2: column and row of each tile in the slide's grid.
        tile_um: side of a tile in microns.
        gap_um: least glass between two sections in microns.

    >>> cells = np.array([[0, 0], [1, 0], [0, 1], [9, 0], [9, 1], [10, 1]])
    >>> sections_of(cells, tile_um=128.0).tolist()
    [0, 0, 0, 1, 1, 1]
    """
    reach = max(1, math.ceil(gap_um / tile_um))
    label_N = _connected(cells_N2, reach)
    numbers, counts = np.unique(label_N, return_counts=True)
    is_large = counts >= LEAST_SHARE * len(cells_N2)
    small_N = ~np.isin(label_N, numbers[is_large])
    if small_N.any():
        nearest = KDTree(cells_N2[~small_N]).query(cells_N2[small_N])[1]
        label_N[small_N] = label_N[~small_N][nearest]
    kept = np.unique(label_N)
    middles = np.array([cells_N2[label_N == number].mean(axis=0) for number in kept])
    order = np.lexsort((middles[:, 1], middles[:, 0]))
    rank = np.empty(len(kept), np.int64)
    rank[order] = np.arange(len(kept))
    section_N: Int64Array = rank[np.searchsorted(kept, label_N)]
    return section_N


def _connected(cells_N2: Int64Array, reach: int) -> Int64Array:
    """Return a label of each tile [N]; tiles that are at most `reach` cells apart share one."""
    pairs = KDTree(cells_N2).query_pairs(reach, p=np.inf, output_type="ndarray")
    count = len(cells_N2)
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    label_N: Int64Array = connected_components(graph, directed=False)[1].astype(np.int64)
    return label_N
