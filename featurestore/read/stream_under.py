"""Tiles of a finer mpp under the tiles of a stream, and their features.

Which tiles there are is read once a slide and kept for the last slides (8 bytes a tile); the
features are read in ranges, as children in one row of the grid are neighbours in the table. Only
existing tiles are held; the gaps of background are filled when a batch is put together.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurestore.notebook.shown import Shown
from featurestore.read.lake_view import LakeView
from featurestore.read.pairs import (
    Nesting,
    cells_of,
    children_among,
    nesting,
    other_origin,
    ratio_of,
)
from featurestore.read.select_slides import select
from featurestore.read.selection import Selection
from featurestore.tables.lance_flat import Float16Array
from featurestore.tables.lance_rows import Rows

KEPT_SLIDES = 512

Int64Array = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, repr=False)
class Under(Shown):
    """Cached features of the tiles of a finer mpp under each tile of a batch.

    A tile without features of one of the teachers counts as background.

    Attributes:
        features: raw float16 [B, r, r, D] per teacher, as (y, x); 0 where there is no tile.
        mask: true where there is a tile [B, r, r].
    """

    features: dict[str, Float16Array]
    mask: npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Below:
    """The slides of a selection at a finer mpp.

    Attributes:
        selection: slides of the selection with tiles at the finer mpp.
        teachers: names of the teachers to read.
        ratio: number of fine tiles side by side in a coarse tile.
        index: index of each coarse slide in the fine selection; -1 if it has no tile there.
        nestings: nesting of each slide of the fine selection.
    """

    selection: Selection
    teachers: tuple[str, ...]
    ratio: int
    index: Int64Array
    nestings: tuple[Nesting, ...]

    @property
    def mpp(self) -> float:
        """Return the mpp of the fine tiles."""
        return self.selection.mpp


def below(lake: LakeView, above: Selection, mpp: float, teachers: Sequence[str]) -> Below:
    """Return the slides of a selection at a finer mpp.

    Args:
        lake: the lake, read at its own version.
        above: the coarse tiles.
        mpp: microns per pixel of the fine tiles.
        teachers: names of the teachers to read for the fine tiles.

    Raises:
        LakeError: a slide is not in the lake at this mpp or lacks features there, or grids do not
            nest; slides are named.
    """
    ratio = ratio_of(lake, coarse=above.mpp, fine=lake.known_mpp(mpp))
    selection = select(lake, teachers, mpp=mpp, slide_ids=above.slide_ids)
    coarse = {row["slide"]: row for row in above.slides.iter_rows(named=True)}
    fine = selection.slides["slide"].to_list()
    place = {slide: index for index, slide in enumerate(fine)}
    return Below(
        selection=selection,
        teachers=tuple(teachers),
        ratio=ratio,
        index=np.array([place.get(slide, -1) for slide in coarse], np.int64),
        nestings=tuple(
            nesting(ratio, coarse[row["slide"]], row)
            for row in selection.slides.iter_rows(named=True)
        ),
    )


@dataclass(frozen=True, kw_only=True)
class FineTiles:
    """The existing fine tiles under some coarse tiles.

    Attributes:
        rows: rows of `features` under each coarse tile, as (y, x) [N, r, r]; -1 without a tile.
        features: raw float16 [M, D] per teacher.
    """

    rows: Int64Array
    features: dict[str, Float16Array]


class UnderReader:
    """Reader of the fine tiles under tiles of a selection. Safe for several threads.

    Args:
        lake: the lake, read at its own version.
        above: the coarse tiles.
        below: the fine tiles.
    """

    def __init__(self, lake: LakeView, above: Selection, below: Below) -> None:
        self.mpp, self._above, self._below = below.mpp, above, below
        self._reader, self._first_reads = lake.row_reader(mpp=below.mpp), lake.first_reads
        dims = lake.teachers(mpp=below.mpp)
        self._dims = {name: dims[name] for name in below.teachers}
        self._kept = functools.lru_cache(KEPT_SLIDES)(self._tiles_of)

    def read(
        self, slide: Int64Array, tile_id: Int64Array, x: Int32Array, y: Int32Array
    ) -> FineTiles:
        """Return the fine tiles under coarse tiles.

        Args:
            slide: slide of each tile, as an index of the coarse selection [N].
            tile_id: keys [N].
            x: level-0 pixels of the tiles' left edges [N].
            y: level-0 pixels of the tiles' top edges [N].

        Raises:
            LakeError: a slide's grids begin at different places.
            DamageError: rows differ from the catalog's.
        """
        rows_under = self._rows_under(slide, tile_id)
        at = np.nonzero(rows_under >= 0)
        rows, place = np.unique(rows_under[at], return_inverse=True)
        fine_rows = self._read_rows(rows)
        self._check_places(slide, x, y, fine_rows, at, place)
        is_complete = np.zeros(len(rows), bool)
        is_complete[
            slice(None) if (complete := fine_rows.complete_rows()) is None else complete
        ] = True
        rows_under[at] = np.where(is_complete[place], place, -1)
        return FineTiles(rows=rows_under, features=fine_rows.by_teacher)

    def _rows_under(self, slide: Int64Array, tile_id: Int64Array) -> Int64Array:
        """Return the rows of the fine selection under each tile [N, r, r]; -1 if none."""
        ratio = self._below.ratio
        rows_under = np.full((len(slide), ratio, ratio), -1)
        for index in np.unique(self._below.index[slide]).tolist():
            if index >= 0:
                coarse_tiles = np.flatnonzero(self._below.index[slide] == index)
                first, cells = self._kept(index)
                apart = self._below.nestings[index].apart
                local = children_among(tile_id[coarse_tiles], cells, ratio, apart=apart)
                rows_under[coarse_tiles] = np.where(local >= 0, first + local, -1)
        return rows_under

    def _tiles_of(self, index: int) -> tuple[int, Int64Array]:
        """Return the first row of a slide in the fine selection, and the cells of all its tiles."""
        self._compare([index])
        rows = self._below.selection.rows_of([index])
        located = self._below.selection.locate(rows)
        tile_id = self._reader.read(located.ranges, []).tile_id
        self._below.selection.check(located, tile_id)
        return int(rows[0]), cells_of(tile_id)

    def _compare(self, slides: Sequence[int]) -> None:
        """Compare slides that were not read before with their checksums."""
        selection = self._below.selection
        self._first_reads.compare(self._reader, selection, slides, list(self._dims))

    def _read_rows(self, rows: Int64Array) -> Rows:
        fine_rows = Rows.empty(len(rows), self._dims)
        located = self._below.selection.locate(rows)
        self._reader.fill(located.ranges, fine_rows, 0)
        self._below.selection.check(located, fine_rows.tile_id)
        return fine_rows

    def _check_places(
        self,
        slide: Int64Array,
        x: Int32Array,
        y: Int32Array,
        fine_rows: Rows,
        at: tuple[Int64Array, ...],
        place: Int64Array,
    ) -> None:
        """Raise LakeError if a child is not at the place of its cell, as `pairs` does."""
        tile, row, column = at
        sides = np.array([nested.side_px for nested in self._below.nestings], np.int64)
        side = sides[self._below.index[slide[tile]]]
        moved = (fine_rows.x[place] != x[tile] + column * side) | (
            fine_rows.y[place] != y[tile] + row * side
        )
        if moved.any():
            raise other_origin(self._above.slide_ids[slide[tile[np.argmax(moved)]]])


def gathered(parts: Sequence[FineTiles], number: Int64Array, row: Int64Array) -> Under:
    """Return the features under some tiles of several parts, gaps filled.

    Args:
        parts: parts that were read.
        number: number of each tile's part [B].
        row: row of each tile in its part [B].
    """
    shape = (len(row), *parts[0].rows.shape[1:])
    mask = np.zeros(shape, bool)
    features = {
        name: np.zeros((*shape, array.shape[1]), np.float16)
        for name, array in parts[0].features.items()
    }
    for part in np.unique(number).tolist():
        part_tiles = np.flatnonzero(number == part)
        rows = parts[part].rows[row[part_tiles]]
        tile, *cell = np.nonzero(rows >= 0)
        at = (part_tiles[tile], *cell)
        mask[at] = True
        for name, array in parts[part].features.items():
            features[name][at] = array[rows[rows >= 0]]
    return Under(features=features, mask=mask)


def joined(parts: Sequence[Under]) -> Under:
    """Return the concatenation of parts."""
    if len(parts) == 1:
        return parts[0]
    return Under(
        mask=np.concatenate([part.mask for part in parts]),
        features={
            name: np.concatenate([part.features[name] for part in parts])
            for name in parts[0].features
        },
    )
