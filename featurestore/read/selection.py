"""A selection of slides to read, with the places of their rows."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from featurestore.errors import DamageError
from featurestore.ids import MAX_GRID, mpp_name, tile_ids, tile_parts
from featurestore.tables.lance_rows import Ranges

Int64Array = npt.NDArray[np.int64]

#: Ranges up to which they are checked one by one, which is cheaper for whole bags.
FEW_RANGES = 16


@dataclass(frozen=True, kw_only=True)
class Located:
    """The places of some rows of a selection, as ranges within one slide each.

    Attributes:
        ranges: ranges of rows of the features table [R].
        slide: row of each range's slide in `Selection.slides` [R].
        first: the ranges' first rows, counted from their slide's first tile [R].
    """

    ranges: Ranges
    slide: Int64Array
    first: Int64Array


class Selection:
    """Slides with tiles and all selected features at one mpp, numbered row by row.

    Args:
        slides: catalog rows of the slides, each with one tile or more.
        mpp: microns per pixel of the tiles.
        crc32: checksum of each slide's features by teacher, from the catalog [slides].

    Attributes:
        tiles: rows of all slides together.
    """

    def __init__(
        self, slides: pl.DataFrame, mpp: float, crc32: Mapping[str, Int64Array] | None = None
    ) -> None:
        self.slides, self.mpp = slides, mpp
        tiles_crc32 = slides["crc32"].to_numpy().astype(np.int64)
        self._crc32: dict[str | None, Int64Array] = {None: tiles_crc32}
        self._crc32.update(crc32 or {})
        self.slide_ids: list[str] = slides["slide_id"].to_list()
        columns = ("slide", "fragment", "row_start", "tiles")
        self._number, self._fragment, self._start, self._count = (
            slides[name].to_numpy().astype(np.int64) for name in columns
        )
        self._end = np.cumsum(self._count)
        self.tiles = int(self._count.sum())

    def __len__(self) -> int:
        return len(self._number)

    def part(self, first: int, last: int) -> "Selection":
        """Return the selection of the slides from `first` up to `last` alone."""
        crc32 = {name: self._crc32[name][first:last] for name in self._crc32 if name is not None}
        return Selection(self.slides[first:last], self.mpp, crc32)

    def number(self, slide: int) -> int:
        """Return the number of a slide in the lake."""
        return int(self._number[slide])

    def place(self, slide: int) -> tuple[int, int, int]:
        """Return the fragment of a slide, its first row in it, and its number of rows."""
        return int(self._fragment[slide]), int(self._start[slide]), int(self._count[slide])

    def crc32(self, slide: int, teacher: str | None) -> int:
        """Return the catalog's checksum of a slide's rows (None), or of a teacher's features."""
        return int(self._crc32[teacher][slide])

    @functools.cached_property
    def digest(self) -> str:
        """Return a hash of the slides' tiles in their order; other slides or tiles have another."""
        rows = self.slides.select("slide", "tiles", "crc32").to_numpy().astype("<i8")
        return hashlib.sha256(rows.tobytes()).hexdigest()[:16]

    def rows_of(self, slides: Sequence[int]) -> Int64Array:
        """Return the numbers of all rows of some slides, slide after slide."""
        begin = self._end - self._count
        return np.concatenate([np.arange(begin[slide], self._end[slide]) for slide in slides])

    def whole(self, slides: Sequence[int]) -> Located:
        """Return the places of all rows of some slides, slide after slide."""
        at = np.asarray(slides, np.int64)
        ranges = Ranges(fragment=self._fragment[at], start=self._start[at], rows=self._count[at])
        return Located(ranges=ranges, slide=at, first=np.zeros(len(at), np.int64))

    def locate(self, rows: Int64Array) -> Located:
        """Return the places of rows; neighbours both in the table and in `rows` share a range."""
        slide = np.searchsorted(self._end, rows, side="right")
        local = rows - (self._end - self._count)[slide]
        starts = np.flatnonzero((np.diff(rows, prepend=-2) != 1) | np.diff(slide, prepend=-1) != 0)
        slide, local = slide[starts], local[starts]
        ranges = Ranges(
            fragment=self._fragment[slide],
            start=self._start[slide] + local,
            rows=np.diff(starts, append=len(rows)),
        )
        return Located(ranges=ranges, slide=slide, first=local)

    def check(self, located: Located, tile_id: Int64Array) -> None:
        """Raise DamageError if rows are not of their slide and mpp, or not in the order of keys."""
        rows = located.ranges.rows
        if len(rows) <= FEW_RANGES and self._are_in_order(located, tile_id):
            return
        slide, mpp, _, _ = tile_parts(tile_id)
        first = np.zeros(len(tile_id), bool)
        first[np.cumsum(rows) - rows] = True
        wrong = (
            (slide != np.repeat(self._number[located.slide], rows))
            | (np.abs(mpp - self.mpp) > 1e-6)
            | (~first & (np.diff(tile_id, prepend=0) <= 0))
        )
        if wrong.any():
            index = int(np.repeat(located.slide, rows)[np.argmax(wrong)])
            msg = (
                f"slide {self.slide_ids[index]} at mpp {mpp_name(self.mpp)}: rows are not those "
                "that the catalog names; run slidelake verify"
            )
            raise DamageError(msg)

    def _are_in_order(self, located: Located, tile_id: Int64Array) -> bool:
        """Whether keys ascend within each range, from the least to the greatest of its slide."""
        stop = 0
        for slide, rows in zip(located.slide.tolist(), located.ranges.rows.tolist(), strict=True):
            start, stop = stop, stop + rows
            keys = tile_id[start:stop]
            least = int(tile_ids(self.number(slide), self.mpp, 0, 0))
            if not rows:
                continue
            inside = least <= keys[0] and keys[-1] < least + MAX_GRID**2
            if not inside or not (keys[1:] > keys[:-1]).all():
                return False
        return True
