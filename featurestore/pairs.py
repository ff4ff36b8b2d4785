"""Tiles of a coarse mpp with the tiles of a fine one that lie under them.

Grids nest, so a child's place is arithmetic on grid indices; nothing is searched by coordinates.
Where tiles overlap, the children are those that fill the coarse tile side by side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurestore.bags import Bag
from featurestore.errors import LakeError
from featurestore.ids import MAX_GRID, mpp_code, mpp_name, tile_parts

if TYPE_CHECKING:
    from featurestore.lake import Lake

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """A slide at two mpps, of which the coarse is `r` times the fine.

    Attributes:
        coarse: tiles [N].
        fine: tiles [M].
        children: rows of `fine` that lie under each coarse tile, as (y, x) [N, r, r]; -1 where
            there is no tile, which is background.
    """

    coarse: Bag
    fine: Bag
    children: Int64Array

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Where there is a fine tile [N, r, r]."""
        return self.children >= 0


def read_pairs(
    lake: "Lake", slide_id: str, *, coarse: float, fine: float, teachers: Sequence[str]
) -> Pairs:
    """A slide's bags at two mpps, and which tiles lie under which.

    Raises:
        LakeError: the mpps or the slide's grids do not nest, or there are no such bags.
    """
    ratio, apart, side_px = _nesting(
        lake, slide_id, coarse=lake.known_mpp(coarse), fine=lake.known_mpp(fine)
    )
    above, below = (lake.bag(slide_id, teachers, mpp=mpp) for mpp in (coarse, fine))
    children = children_of(above.tile_id, below.tile_id, ratio, apart=apart)
    pairs = Pairs(coarse=above, fine=below, children=children)
    _check_places(pairs, side_px)
    return pairs


def children_of(coarse: Int64Array, fine: Int64Array, ratio: int, *, apart: int = 1) -> Int64Array:
    """Rows of `fine` [M] under each tile of `coarse` [N], as [N, ratio, ratio]; -1 if none.

    Args:
        coarse: keys of tiles of one slide.
        fine: keys of tiles of the same slide, ascending.
        ratio: fine tiles side by side in a coarse one.
        apart: cells of the fine grid from one of them to the next: 2 where tiles overlap by half.
    """
    _, _, grid_y, grid_x = tile_parts(coarse)
    step = np.arange(ratio) * apart
    y = grid_y[:, None, None] * ratio + step[:, None]
    x = grid_x[:, None, None] * ratio + step
    _, _, fine_y, fine_x = tile_parts(fine)
    there, wanted = fine_y * MAX_GRID + fine_x, y * MAX_GRID + x
    at = np.searchsorted(there, wanted)
    found = at < len(there)
    found[found] = there[at[found]] == wanted[found]
    return np.where(found & (x < MAX_GRID), at, -1)


def _check_places(pairs: Pairs, side_px: int) -> None:
    """Raise LakeError if a child is not where its grid says: an import may have another origin."""
    tile, row, column = np.nonzero(pairs.mask)
    child = pairs.children[tile, row, column]
    x = pairs.coarse.x[tile] + column * side_px
    y = pairs.coarse.y[tile] + row * side_px
    if (pairs.fine.x[child] != x).any() or (pairs.fine.y[child] != y).any():
        msg = f"slide {pairs.coarse.slide_id}: its grids begin at different places and do not nest"
        raise LakeError(msg)


def _nesting(lake: "Lake", slide_id: str, *, coarse: float, fine: float) -> tuple[int, int, int]:
    """How grids nest.

    Returns:
        Fine tiles side by side in a coarse one, cells of the fine grid from one of these to the
        next, and the side of a fine tile in level-0 pixels.

    Raises:
        LakeError: the first is no whole number of two or more, or the slide's grids say otherwise.
    """
    ratio, rest = divmod(mpp_code(coarse), mpp_code(fine))
    if rest or ratio < 2:
        msg = (
            f"coarse={coarse}, fine={fine} given; coarse must be a whole multiple of fine, two or "
            f"more; {lake.uri} has {list(lake.config.mpps)}"
        )
        raise LakeError(msg)
    large, small = (_grid(lake, slide_id, mpp) for mpp in (coarse, fine))
    if large["grid_px_level0"] != ratio * small["grid_px_level0"]:
        msg = (
            f"slide {slide_id}: tiles are {large['grid_px_level0']} level-0 px apart at mpp "
            f"{mpp_name(coarse)} and {small['grid_px_level0']} at {mpp_name(fine)}, not {ratio} "
            "times as far: these grids do not nest"
        )
        raise LakeError(msg)
    side_px = small["tile_px_level0"]
    return ratio, side_px // small["grid_px_level0"], side_px


def _grid(lake: "Lake", slide_id: str, mpp: float) -> Mapping[str, Any]:
    rows = lake.tiles_of(mpp=mpp, slide_ids=[slide_id])
    if rows.height != 1:
        msg = f"slide '{slide_id}' is not in {lake.uri} at mpp {mpp_name(mpp)}"
        raise LakeError(msg)
    row = rows.row(0, named=True)
    if row["tile_px_level0"] % row["grid_px_level0"]:
        msg = (
            f"slide {slide_id} at mpp {mpp_name(mpp)}: tiles of {row['tile_px_level0']} level-0 px "
            f"lie {row['grid_px_level0']} px apart, which is no whole part of it: they do not nest"
        )
        raise LakeError(msg)
    return row
