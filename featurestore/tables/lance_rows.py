"""Ranges of rows of a features table, each column read from its own data file.

Rows are counted in their order in the fragment, deleted rows included, as in the catalog; Lance's
own `take` and `scanner` count only live rows. Pages of plain values are read in place (see
`lance_flat`), all others by Lance's file reader, which returns the same bits.
"""

import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lance.file import LanceFileReader, LanceFileSession

from featurestore.codecs.codec import Codec
from featurestore.codecs.codec_files import read_codec
from featurestore.errors import DamageError
from featurestore.storage.read_errors import reading
from featurestore.storage.side_by_side import side_by_side
from featurestore.storage.store import Store
from featurestore.tables.checksums import features_crc32, values_crc32
from featurestore.tables.lance_flat import FlatColumn, Float16Array, StoredArray, flat_column
from featurestore.tables.schema import (
    ANNOTATION,
    SCORE,
    TILE_COLUMNS,
    dim_of,
    is_quantised,
    is_teacher,
    kind_of,
)

OPEN_FILES = 256
KEPT_LAYOUTS = 16384
PLACE = ("tile_id", "x", "y")

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """Ranges of rows that do not overlap, in the order of the request.

    Attributes:
        fragment: id of each range's fragment [R].
        start: first row in the fragment, deleted rows counted [R].
        rows: number of rows [R].
    """

    fragment: Int64Array
    start: Int64Array
    rows: Int64Array


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of a features table.

    Attributes:
        tile_id: keys [N].
        x: level-0 pixels of the tiles' left edges [N].
        y: level-0 pixels of the tiles' top edges [N].
        by_teacher: float16 [N, D] per teacher.
    """

    tile_id: Int64Array
    x: npt.NDArray[np.int32]
    y: npt.NDArray[np.int32]
    by_teacher: dict[str, Float16Array]

    @classmethod
    def empty(cls, rows: int, dims: Mapping[str, int]) -> Self:
        """Return empty arrays for teachers with the dimensions `dims`."""
        return cls(
            tile_id=np.empty(rows, np.int64),
            x=np.empty(rows, np.int32),
            y=np.empty(rows, np.int32),
            by_teacher={name: np.empty((rows, dim), np.float16) for name, dim in dims.items()},
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the concatenation of parts."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            tile_id=np.concatenate([part.tile_id for part in parts]),
            x=np.concatenate([part.x for part in parts]),
            y=np.concatenate([part.y for part in parts]),
            by_teacher={
                name: np.concatenate([part.by_teacher[name] for part in parts])
                for name in parts[0].by_teacher
            },
        )

    def complete_rows(self) -> Int64Array | None:
        """Return the numbers of rows with features of every teacher; None if all rows have them."""
        absent = np.zeros(len(self.tile_id), bool)
        for array in self.by_teacher.values():
            absent |= np.isnan(array[:, 0])
        return np.flatnonzero(~absent) if absent.any() else None

    def take(self, which: Int64Array) -> Self:
        """Return a copy of some of the rows, in the given order."""
        return type(self)(
            tile_id=self.tile_id[which],
            x=self.x[which],
            y=self.y[which],
            by_teacher={name: np.take(a, which, axis=0) for name, a in self.by_teacher.items()},
        )


@dataclass(frozen=True, kw_only=True)
class _DataFile:
    """A column's data file, the column's index in it, and its place among the file's fields."""

    path: str
    index: int
    place: int
    fields: int


class _Reader:
    """A Lance file reader for one thread at a time, as Lance's own is not thread-safe."""

    def __init__(self, file: LanceFileReader) -> None:
        self._lock = threading.Lock()
        self._file = file

    def pages(self, index: int) -> Sequence[Any]:
        with self._lock:
            pages: Sequence[Any] = self._file.metadata().columns[index].pages
        return pages

    def take(self, rows: Int64Array) -> Any:  # noqa: ANN401 - an Arrow table, untyped
        """Return the rows, which must be in ascending order; a row may come several times."""
        if (np.diff(rows) == 0).any():  # which Lance refuses
            once, places = np.unique(rows, return_inverse=True)
            return self.take(once).take(places)
        first, count = int(rows[0]), len(rows)
        with self._lock:
            if rows[-1] - first + 1 == count:
                return self._file.read_range(first, count, batch_size=count).to_table()
            return self._file.take_rows(rows.tolist(), batch_size=count).to_table()


def _leaf_count(kind: pa.DataType) -> int:
    """Return the number of fields in a data file that belong to a column of this type."""
    if pa.types.is_struct(kind):
        return sum(_leaf_count(field.type) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _leaf_count(kind.value_type)
    return 1


class RowReader:
    """Reader of row ranges of one version of a features table. Safe for several threads.

    Args:
        store: the lake's files.
        rel: the table's path in the lake.
        table: the table, open at the version to read.
    """

    def __init__(self, store: Store, rel: str, table: lance.LanceDataset) -> None:
        self.store, self._rel, self._table = store, rel, table
        self._fields = {field.name(): field.id() for field in table.lance_schema.fields()}
        # Lance makes a schema anew each time.
        self._dims = {f.name: dim_of(f) for f in table.schema if is_teacher(f)}
        self._open = functools.lru_cache(maxsize=OPEN_FILES)(self._open_reader)
        self._layout = functools.lru_cache(maxsize=KEPT_LAYOUTS)(self._flat_column)
        self.codec = functools.cache(self._codec_of)

    def _codec_of(self, teacher: str) -> Codec | None:
        """Return the codec of a teacher's column; None if it holds features as they are.

        Raises:
            DamageError: the codec's file is gone or damaged.
        """
        field = self._table.schema.field(teacher)
        return read_codec(self.store, field) if is_quantised(field) else None

    def read(self, ranges: Ranges, teachers: Sequence[str]) -> Rows:
        """Return the rows of all ranges, range after range.

        Raises:
            DamageError: a data file is gone or short, or a row has no features.
        """
        rows = Rows.empty(int(ranges.rows.sum()), {name: self.dim(name) for name in teachers})
        self.fill(ranges, rows, 0)
        return rows

    def fill(self, ranges: Ranges, into: Rows, at: int, *, places: bool = True) -> None:
        """Read the rows of all ranges into arrays from row `at` on, as `read` does.

        Args:
            ranges: the rows.
            into: arrays to fill.
            at: first row in the arrays.
            places: whether keys and places are filled too, or features alone.
        """
        begins = at + np.cumsum(ranges.rows) - ranges.rows
        jobs: list[tuple[int, str | None, _Part]] = []
        for fragment in np.unique(ranges.fragment).tolist():
            in_fragment = np.flatnonzero(ranges.fragment == fragment)
            in_fragment = in_fragment[np.argsort(ranges.start[in_fragment], kind="stable")]
            part = _Part(ranges.start[in_fragment], ranges.rows[in_fragment], begins[in_fragment])
            names = [None, *into.by_teacher] if places else list(into.by_teacher)
            jobs += [(fragment, name, part) for name in names]
        side_by_side(self.store, lambda job: self._fill_part(*job, into), jobs)

    def _fill_part(self, fragment: int, teacher: str | None, part: "_Part", into: Rows) -> None:
        """Fill in the places of tiles (teacher None) or a teacher's features in one fragment."""
        subject = f"{self._rel}, fragment {fragment}"
        if teacher is None:
            with reading(self.store, subject):
                self._fill_place(fragment, part, into)
        else:
            with reading(self.store, f"{subject}, '{teacher}'"):
                self._fill_teacher(fragment, teacher, part, into.by_teacher[teacher])

    def tiles(self, fragment: int, start: int, rows: int) -> pa.Table:
        """Return the tile columns of some rows of a fragment; errors are Lance's own."""
        numbers = np.arange(start, start + rows)
        by_file: dict[str, list[str]] = {}
        for name in TILE_COLUMNS:  # `slide_id` of a slide that was renamed has a file of its own
            by_file.setdefault(self._data_file(fragment, name).path, []).append(name)
        parts = [self._open(fragment, tuple(names)).take(numbers) for names in by_file.values()]
        columns = {name: part[name] for part in parts for name in part.column_names}
        return pa.table({name: columns[name] for name in TILE_COLUMNS})

    def features(self, fragment: int, start: int, rows: int, teacher: str) -> Float16Array:
        """Return a teacher's features [N, D] of some rows of a fragment; errors are Lance's own."""
        return self.decoded(teacher, self.stored(fragment, start, rows, teacher))

    def stored(self, fragment: int, start: int, rows: int, teacher: str) -> StoredArray:
        """Return the same rows as they are stored, of which checksums are: features, or codes."""
        array = self._empty_stored(rows, teacher)
        part = _Part(np.array([start]), np.array([rows]), np.array([0]))
        self._fill_stored(fragment, teacher, part, array)
        return array

    def dim(self, teacher: str) -> int:
        """Return the number of values in a teacher's features of a tile."""
        return self._dims[teacher]

    def decoded(self, teacher: str, stored: StoredArray) -> Float16Array:
        """Return rows of a teacher's column as features [N, D]."""
        codec = self.codec(teacher)
        return stored if codec is None else codec.decode(stored)  # type: ignore[return-value, arg-type]

    def _empty_stored(self, rows: int, teacher: str) -> StoredArray:
        kind = self._table.schema.field(teacher).type
        return np.empty((rows, kind.list_size), kind.value_type.to_pandas_dtype())

    def _fill_place(self, fragment: int, part: "_Part", into: Rows) -> None:
        table = self._open(fragment, PLACE).take(part.source)
        target = part.target
        for name, array in (("tile_id", into.tile_id), ("x", into.x), ("y", into.y)):
            array[target] = table[name].to_numpy()

    def _fill_teacher(
        self, fragment: int, teacher: str, part: "_Part", array: Float16Array
    ) -> None:
        codec = self.codec(teacher)
        if codec is None:
            self._fill_stored(fragment, teacher, part, array)
            return
        codes = self._empty_stored(len(part.target), teacher)
        self._fill_stored(fragment, teacher, part.alone(), codes)
        array[part.target] = codec.decode(codes)  # type: ignore[arg-type]

    def _fill_stored(self, fragment: int, teacher: str, part: "_Part", array: StoredArray) -> None:
        flat = self._layout(fragment, teacher)
        if flat is None or not flat.read(part.ranges, array):
            table = self._open(fragment, (teacher,)).take(part.source)
            array[part.target] = matrix(table.column(0))

    def _data_file(self, fragment: int, column: str) -> _DataFile:
        table_fragment = self._table.get_fragment(fragment)
        field_id = self._fields[column]
        for file in table_fragment.metadata.files if table_fragment else ():
            if field_id in file.fields:
                place = file.fields.index(field_id)
                return _DataFile(
                    path=f"{self._rel}/data/{file.path}",
                    index=file.column_indices[place],
                    place=place,
                    fields=len(file.fields),
                )
        msg = f"no data file holds the column '{column}'"
        raise DamageError(msg)

    def _open_reader(self, fragment: int, columns: tuple[str, ...]) -> _Reader:
        file = self._data_file(fragment, columns[0])
        open_file = functools.partial(self._lance_reader, file.path)
        if columns[0] in TILE_COLUMNS:
            return _Reader(open_file(columns=list(columns)))
        whole = open_file()
        # A column is called there as it was when the file was written, before it was renamed.
        schema: pa.Schema = whole.metadata().schema
        if len(schema) == 1:
            return _Reader(whole)
        names = [field.name for field in schema for _ in range(_leaf_count(field.type))]
        name = names[file.place] if len(names) == file.fields else columns[0]
        return _Reader(open_file(columns=[name]))

    def _lance_reader(self, path: str, columns: list[str] | None = None) -> LanceFileReader:
        if self.store.is_local:
            return LanceFileReader(self.store.url(path), columns=columns)
        return self._files.open_reader(path.removeprefix(f"{self._rel}/"), columns=columns)

    @functools.cached_property
    def _files(self) -> LanceFileSession:
        """Return one client for all files of the table in a bucket, with its connections."""
        url, options = self.store.url(self._rel), self.store.lance_options
        return LanceFileSession(url, storage_options=options)

    def _flat_column(self, fragment: int, teacher: str) -> FlatColumn | None:
        if not self.store.is_local:
            return None
        file = self._data_file(fragment, teacher)
        pages = self._open(fragment, (teacher,)).pages(file.index)
        kind = self._table.schema.field(teacher).type
        value_bytes = kind.value_type.bit_width // 8
        return flat_column(self.store.path(file.path), pages, kind.list_size, value_bytes)


class _Part:
    """The ranges of one fragment, by their first row, and the target rows in the arrays."""

    def __init__(self, start: Int64Array, rows: Int64Array, begin: Int64Array) -> None:
        self._start, self._rows = start, rows
        self.ranges = list(zip(start.tolist(), rows.tolist(), begin.tolist(), strict=True))
        self.source = _row_numbers(start, rows)
        self.target = _row_numbers(begin, rows)

    def alone(self) -> "_Part":
        """Return the same ranges for arrays that hold nothing else."""
        return _Part(self._start, self._rows, np.cumsum(self._rows) - self._rows)


def _row_numbers(start: Int64Array, rows: Int64Array) -> Int64Array:
    """Return all row numbers of ranges, range after range."""
    return np.repeat(start - (np.cumsum(rows) - rows), rows) + np.arange(rows.sum())


def matrix(column: Any) -> Float16Array:  # noqa: ANN401 - an Arrow array, untyped
    """Return a fixed-size-list column as an array [N, D], without a copy if it is one chunk.

    Codes of a quantised column come as they are stored.

    Raises:
        DamageError: a row is null.
    """
    array = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    if hasattr(array, "chunks"):
        array = array.chunk(0)
    if array.null_count:
        msg = f"{array.null_count} of {len(array)} features are missing"
        raise DamageError(msg)
    dim = array.type.list_size
    # `.flatten()` would drop nulls and shift rows; `.values` ignores the slice, so cut it here.
    numbers = array.values.slice(array.offset * dim, len(array) * dim)
    features: Float16Array = numbers.to_numpy(zero_copy_only=True).reshape(-1, dim)
    return features


def column_crc32(table: pa.Table, column: str) -> int:
    """Return the checksum of a slide's features, or of its tiles' annotations or scores.

    Raises:
        DamageError: a row has no features.
    """
    if kind_of(table.schema.field(column)) in (ANNOTATION, SCORE):
        return values_crc32(table[column].to_pylist())
    return features_crc32(matrix(table[column]))
