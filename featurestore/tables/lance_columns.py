"""A teacher's column of one fragment, written by a worker as one file of its own."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lance.file import LanceFileWriter

from featurestore.storage.full_disk import naming_full_disk
from featurestore.storage.store import Store
from featurestore.tables.checksums import features_crc32
from featurestore.tables.column_rows import ColumnRows
from featurestore.tables.lance_tables import STORAGE_VERSION, open_table
from featurestore.tables.schema import features_table

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ColumnFile:
    """A finished file that no version names yet.

    Attributes:
        teacher: name of the column.
        fragment: the fragment that it belongs to.
        path: name of the file among the table's data files.
        rows: rows in it; the fragment must have as many.
        crc32: checksum per slide number.
    """

    teacher: str
    fragment: int
    path: str
    rows: int
    crc32: dict[int, int]


class FragmentKeys:
    """Keys of some slides' tiles in a fragment, read once for all of them.

    They are found by number, not by place: rows of a slide that was scanned again may be deleted.
    From a bucket, a slide at a time would open the table and read its column of numbers each time.

    Args:
        store: the lake's files.
        mpp: microns per pixel of the features table.
        fragment: the fragment's id, in the newest version of the table.
        slides: numbers of the slides.
    """

    def __init__(self, store: Store, mpp: float, fragment: int, slides: Sequence[int]) -> None:
        self._rows = open_table(store, features_table(mpp)).get_fragment(fragment)
        self._slides = f"slide IN ({', '.join(str(slide) for slide in sorted(set(slides)))})"
        self._by_where: dict[str | None, tuple[Int64Array, Int64Array]] = {}

    def of(self, slide: int, where: str | None = None) -> Int64Array:
        """Return the keys of a slide's tiles, in row order, where `where` holds."""
        if where not in self._by_where:
            row_filter = self._slides if where is None else f"{self._slides} AND ({where})"
            columns = ["slide", "tile_id"]
            table = self._rows.scanner(columns=columns, filter=row_filter).to_table()
            numbers = table["slide"].to_numpy().astype(np.int64)
            by_slide = np.argsort(numbers, kind="stable")  # a fragment may hold 100,000 slides
            self._by_where[where] = numbers[by_slide], table["tile_id"].to_numpy()[by_slide]
        numbers, keys = self._by_where[where]
        first, stop = np.searchsorted(numbers, [slide, slide + 1])
        chosen: Int64Array = keys[first:stop]
        return chosen


class ColumnWriter(ColumnRows):
    """Writer of one teacher's features of one fragment, slide after slide in row order.

    Null are rows that get no features; NaN are tiles that the teacher leaves out.

    Args:
        store: the lake's files.
        mpp: microns per pixel of the features table.
        field: the teacher's column, as `Committer.add_teacher` returned it.
        fragment: the fragment's id.

    Attributes:
        rows: rows written so far; at the end as many as the fragment's, deleted rows included.
    """

    def __init__(self, store: Store, mpp: float, field: pa.Field, fragment: int) -> None:
        super().__init__(field, fragment)
        self.path = f"{uuid.uuid4()}.lance"
        self._crc: dict[int, int] = {}
        self._schema, self._uri = pa.schema([field]), store.uri
        self._writer = LanceFileWriter(
            f"{store.url(features_table(mpp))}/data/{self.path}",
            self._schema,
            version=STORAGE_VERSION,
            storage_options=store.lance_options,
        )

    def append(self, slide: int, stored: npt.NDArray[np.float16 | np.uint8]) -> None:
        """Append features [N, D] of the next tiles as they are stored, or codes of them."""
        self._crc[slide] = features_crc32(stored, self._crc.get(slide, 0))
        column = pa.FixedSizeListArray.from_arrays(pa.array(stored.ravel()), type=self.field.type)
        self._put(column)

    def _put(self, column: pa.Array) -> None:
        with naming_full_disk(self._uri):
            self._writer.write_batch(pa.record_batch([column], schema=self._schema))
        self.rows += len(column)

    def skip(self, rows: int) -> None:
        """Append nulls for rows without features: deleted rows, or the rows of a slide."""
        if not rows:
            return
        self._put(pa.nulls(rows, self.field.type))

    def finish(self) -> ColumnFile:
        """Close the file and return its description."""
        with naming_full_disk(self._uri):
            self._writer.close()
        return ColumnFile(
            teacher=self.field.name,
            fragment=self.fragment,
            path=self.path,
            rows=self.rows,
            crc32=self._crc,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._writer.close()
