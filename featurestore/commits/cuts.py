"""Cut slides that workers pass to the committer, their checks, and their catalog rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import DamageError
from featurestore.shards.tar_shards import Shard
from featurestore.storage.side_by_side import side_by_side
from featurestore.storage.store import Store
from featurestore.tables.checksums import tiles_crc32

ROWS_PER_FRAGMENT = 250_000

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class GridCut:
    """The tiles that were cut from one slide at one mpp.

    Attributes:
        tiles: rows of the features table, sorted by tile_id.
        shard: shard that holds their pixels; None for features imported without pixels.
        effective_mpp: microns per pixel that the tiles really have; None if that is not known.
        tile_px_level0: side of a tile in level-0 pixels.
        grid_px_level0: level-0 pixels between neighbouring cells of the grid: the side of a tile,
            unless tiles overlap or were imported.
        grid_width: cells in a row of the whole grid, background included.
        grid_height: rows of the whole grid.
    """

    tiles: pa.Table
    shard: Shard | None
    effective_mpp: float | None
    tile_px_level0: int
    grid_px_level0: int
    grid_width: int
    grid_height: int


@dataclass(frozen=True, kw_only=True)
class SlideCut:
    """A cut slide that a worker passes to the committer: its row of `slides` and a cut per mpp."""

    row: Row
    grids: dict[float, GridCut] = field(default_factory=dict)


def fragment_groups(cuts: Sequence[SlideCut], mpp: float) -> Iterator[list[SlideCut]]:
    """Yield slides in groups of at most 250,000 tiles; each group becomes one fragment.

    A slide is never split.
    """
    group: list[SlideCut] = []
    rows = 0
    for cut in cuts:
        more = cut.grids[mpp].tiles.num_rows
        if group and rows + more > ROWS_PER_FRAGMENT:
            yield group
            group, rows = [], 0
        group.append(cut)
        rows += more
    if group:
        yield group


def check_cuts(store: Store, mpp: float, cuts: Sequence[SlideCut]) -> None:
    """Raise DamageError if rows are unsorted, of another slide, or without their whole shard."""
    # A request for each shard.
    side_by_side(store, lambda cut: _check_cut(store, cut.row, cut.grids[mpp]), cuts)


def _check_cut(store: Store, row: Row, grid: GridCut) -> None:
    ids, shard = grid.tiles["tile_id"].to_numpy(), grid.shard
    if np.any(np.diff(ids) <= 0) or (shard and shard.tiles != len(ids)):
        msg = f"slide {row['slide_id']}: tiles are not sorted by key, or not all are in the shard"
        raise DamageError(msg)
    if pc.any(pc.not_equal(grid.tiles["slide"], row["slide"])).as_py():
        msg = f"slide {row['slide_id']}: rows of another slide are among its tiles"
        raise DamageError(msg)
    if shard and _size(store, shard.path) != shard.bytes:
        msg = f"slide {row['slide_id']}: shard {shard.path} is not there whole"
        raise DamageError(msg)


def _size(store: Store, path: str) -> int | None:
    try:
        return store.size(path)
    except FileNotFoundError:
        return None


def tiles_row(slide: Row, mpp: float, grid: GridCut, start: int) -> Row:
    """Return the catalog row of a slide's tiles; its fragment is known after the commit."""
    return {
        "slide": slide["slide"],
        "slide_id": slide["slide_id"],
        "mpp": mpp,
        "teacher": None,
        "tiles": grid.tiles.num_rows,
        "crc32": tiles_crc32(grid.tiles),
        "row_start": start,
        "shard": grid.shard.path if grid.shard else None,
        "shard_bytes": grid.shard.bytes if grid.shard else None,
        "shard_crc32": grid.shard.crc32 if grid.shard else None,
        "index_crc32": grid.shard.index_crc32 if grid.shard else None,
        "effective_mpp": grid.effective_mpp,
        "tile_px_level0": grid.tile_px_level0,
        "grid_px_level0": grid.grid_px_level0,
        "grid_width": grid.grid_width,
        "grid_height": grid.grid_height,
    }
