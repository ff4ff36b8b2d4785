"""Tiles of a coarse mpp with the tiles of a fine mpp under them.

Grids nest, so a child's place is arithmetic on grid indices; nothing is searched by coordinates.
Where tiles overlap, the children are the fine tiles that fill the coarse tile side by side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import LakeError
from featurestore.ids import MAX_GRID, mpp_code, mpp_name, tile_parts
from featurestore.notebook.shown import Shown
from featurestore.read.bags import Bag
from featurestore.read.lake_view import LakeView, similar_slide

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, repr=False)
class Pairs(Shown):
    """A slide at two mpps, of which the coarse is `r` times the fine.

    Attributes:
        coarse: tiles [N].
        fine: tiles [M].
        children: rows of `fine` under each coarse tile, as (y, x) [N, r, r]; -1 where
            there is no tile, which is background.

    Examples:
        >>> lake = sl.open_lake("my-lake")
        >>> pairs = lake.pairs("s01a", coarse=2.0, fine=0.5, teachers="student")
        >>> pairs.fine.features[pairs.children[0, 0]].shape  # four tiles under the first row
        (4, 64)
    """

    coarse: Bag
    fine: Bag
    children: Int64Array

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Return a mask of the places with a fine tile [N, r, r].

        Examples:
            >>> lake = sl.open_lake("my-lake")
            >>> pairs = lake.pairs("s01a", coarse=2.0, fine=0.5, teachers="student")
            >>> int(pairs.mask.sum())
            16
        """
        return self.children >= 0


@dataclass(frozen=True, kw_only=True)
class Nesting:
    """The places of a slide's fine tiles in its coarse ones.

    Attributes:
        ratio: number of fine tiles side by side in a coarse tile.
        apart: fine-grid cells between neighbouring children: 2 where tiles overlap by half.
        side_px: side of a fine tile, in level-0 pixels.
    """

    ratio: int
    apart: int
    side_px: int


def read_pairs(
    lake: LakeView, slide_id: str, *, coarse: float, fine: float, teachers: Sequence[str]
) -> Pairs:
    """Return a slide's bags at two mpps, and the fine tiles under each coarse tile.

    Raises:
        LakeError: the mpps or the slide's grids do not nest, or there are no such bags.
    """
    ratio = ratio_of(lake, coarse=lake.known_mpp(coarse), fine=lake.known_mpp(fine))
    large, small = (_grid(lake, slide_id, lake.known_mpp(mpp)) for mpp in (coarse, fine))
    nested = nesting(ratio, large, small)
    above, below = (lake.bag(slide_id, teachers, mpp=mpp) for mpp in (coarse, fine))
    children = children_of(above.tile_id, below.tile_id, ratio, apart=nested.apart)
    pairs = Pairs(coarse=above, fine=below, children=children)
    _check_places(pairs, nested.side_px)
    return pairs


def children_of(coarse: Int64Array, fine: Int64Array, ratio: int, *, apart: int = 1) -> Int64Array:
    """Return the rows of `fine` [M] under each tile of `coarse`, [N, ratio, ratio]; -1 if none.

    Args:
        coarse: keys of tiles of one slide.
        fine: keys of tiles of the same slide, ascending.
        ratio: number of fine tiles side by side in a coarse tile.
        apart: fine-grid cells between neighbouring children: 2 where tiles overlap by half.
    """
    return children_among(coarse, cells_of(fine), ratio, apart=apart)


def cells_of(keys: Int64Array) -> Int64Array:
    """Return the number of each tile's cell in its grid; ascending keys have ascending cells."""
    _, _, grid_y, grid_x = tile_parts(keys)
    return grid_y * MAX_GRID + grid_x


def children_among(coarse: Int64Array, cells: Int64Array, ratio: int, *, apart: int) -> Int64Array:
    """Return the result of `children_of` from the ascending `cells_of` the fine tiles."""
    y, x = child_cells(coarse, ratio, apart=apart)
    child_cell = y * MAX_GRID + x
    at = np.searchsorted(cells, child_cell)
    exists = at < len(cells)
    exists[exists] = cells[at[exists]] == child_cell[exists]
    return np.where(exists & (x < MAX_GRID), at, -1)


def child_cells(coarse: Int64Array, ratio: int, *, apart: int = 1) -> tuple[Int64Array, Int64Array]:
    """Return grid_y [N, ratio, 1] and grid_x [N, 1, ratio] of the fine tiles under coarse ones.

    Args:
        coarse: keys of coarse tiles [N].
        ratio: number of fine tiles side by side in a coarse tile.
        apart: fine-grid cells between neighbouring children: 2 where tiles overlap by half.
    """
    _, _, grid_y, grid_x = tile_parts(coarse)
    step = np.arange(ratio) * apart
    y: Int64Array = grid_y[:, None, None] * ratio + step[:, None]
    x: Int64Array = grid_x[:, None, None] * ratio + step
    return y, x


def _check_places(pairs: Pairs, side_px: int) -> None:
    """Raise LakeError if a child is not at the place of its cell, as after an import."""
    tile, row, column = np.nonzero(pairs.mask)
    child = pairs.children[tile, row, column]
    x = pairs.coarse.x[tile] + column * side_px
    y = pairs.coarse.y[tile] + row * side_px
    if (pairs.fine.x[child] != x).any() or (pairs.fine.y[child] != y).any():
        raise other_origin(pairs.coarse.slide_id)


def other_origin(slide_id: str) -> LakeError:
    """Return the error for a slide with keys that nest and tiles that do not."""
    msg = f"slide {slide_id}: its grids begin at different places and do not nest"
    return LakeError(msg)


def ratio_of(lake: LakeView, *, coarse: float, fine: float) -> int:
    """Return the number of fine tiles side by side in a coarse tile, from the two mpps.

    Raises:
        LakeError: the ratio is no whole number of two or more.
    """
    ratio, rest = divmod(mpp_code(coarse), mpp_code(fine))
    if rest or ratio < 2:
        msg = (
            f"coarse={coarse}, fine={fine} given; coarse must be a whole multiple of fine, two or "
            f"more; {lake.uri} has {list(lake.config.mpps)}"
        )
        raise LakeError(msg)
    return ratio


def nesting(ratio: int, large: Mapping[str, Any], small: Mapping[str, Any]) -> Nesting:
    """Return the nesting of two grids of a slide, from the catalog's rows of their tiles.

    Args:
        ratio: ratio of the grids' mpps.
        large: the row at the coarse mpp.
        small: the row at the fine mpp.

    Raises:
        LakeError: they do not; the slide is named.
    """
    for row in (large, small):
        if row["tile_px_level0"] % row["grid_px_level0"]:
            msg = (
                f"slide {row['slide_id']} at mpp {mpp_name(row['mpp'])}: tiles of "
                f"{row['tile_px_level0']} level-0 px lie {row['grid_px_level0']} px apart, which "
                "is no whole part of it: they do not nest"
            )
            raise LakeError(msg)
    if large["grid_px_level0"] != ratio * small["grid_px_level0"]:
        msg = (
            f"slide {large['slide_id']}: tiles are {large['grid_px_level0']} level-0 px apart at "
            f"mpp {mpp_name(large['mpp'])} and {small['grid_px_level0']} at "
            f"{mpp_name(small['mpp'])}, not {ratio} times as far: these grids do not nest"
        )
        raise LakeError(msg)
    side_px = small["tile_px_level0"]
    return Nesting(ratio=ratio, apart=side_px // small["grid_px_level0"], side_px=side_px)


def _grid(lake: LakeView, slide_id: str, mpp: float) -> Mapping[str, Any]:
    rows = lake.tiles_of(mpp=mpp, slide_ids=[slide_id])
    if rows.height != 1:
        msg = f"slide '{slide_id}' is not in {lake.uri} at mpp {mpp_name(mpp)}"
        msg += similar_slide(lake, slide_id)
        raise LakeError(msg)
    return rows.row(0, named=True)
