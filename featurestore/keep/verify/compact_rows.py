"""Rows of `slides` and `catalog` as `verify` keeps them: 13 to 42 bytes each, in numbers.

A lake of 500,000 slides has millions of catalog rows, so names are kept as 64-bit hashes. Rows that
do not fit are read again by their positions when they are named.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from featurestore.tables.schema import DROPPED, READY

IntArray = npt.NDArray[np.integer[Any]]
Row = dict[str, Any]
#: Rows of a table by their positions in it, which are ascending.
ReadAgain = Callable[[IntArray], list[Row]]

MARK = r"-([^-/]*)\.tar$"
NO_MARK = 0
TILES = -1  # the code of a row of tiles, where others have that of their teacher
STATES = {READY: 1, DROPPED: 2}


def codes_of(names: pa.Array, codes: dict[Any, int]) -> IntArray:
    """Return the code of each name; a name without a code gets the next free number."""
    encoded = names.dictionary_encode()
    for name in encoded.dictionary.to_pylist():
        codes.setdefault(name, len(codes))
    numbers = [codes[name] for name in encoded.dictionary.to_pylist()]
    indices = encoded.indices.fill_null(len(numbers)).to_numpy(zero_copy_only=False)
    name_codes: IntArray = np.array([*numbers, TILES], np.int32)[indices]
    return name_codes


def hashes_of(text_array: pa.Array, pattern: str | None = None) -> IntArray:
    """Return a hash of each text, or of its part that a pattern captures; 0 for null."""
    texts = pl.Series(text_array.cast(pa.string()))
    if pattern is not None:
        texts = texts.str.extract(pattern)
    hashes = np.maximum(texts.hash(seed=0).to_numpy(), 1)
    return np.where(texts.is_null().to_numpy(), np.uint64(NO_MARK), hashes)


class GrowingColumns:
    """Columns of numbers that grow batch after batch."""

    def __init__(self) -> None:
        self._parts: dict[str, list[IntArray]] = {}

    def add(self, arrays: Mapping[str, IntArray]) -> None:
        """Append a batch. Its arrays are copied: a view would keep the memory of the batch."""
        for name, array in arrays.items():
            self._parts.setdefault(name, []).append(np.array(array, copy=True))

    def joined(self, kinds: Mapping[str, type]) -> dict[str, IntArray]:
        """Return each column as one array, empty without a batch; free the pieces."""
        return {
            name: np.concatenate([np.empty(0, kind), *self._parts.pop(name, [])], dtype=kind)
            for name, kind in kinds.items()
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class SlideRows:
    """Rows of `slides`, in table order.

    Attributes:
        slide: numbers [N].
        name: hashes of the slide_ids [N].
        state: codes of `STATES`, 0 for all others [N].
        again: reads rows again by their positions: `slide`, `slide_id` and `state`.
    """

    slide: IntArray
    name: IntArray
    state: IntArray
    again: ReadAgain

    KINDS: ClassVar[dict[str, type]] = {"slide": np.int32, "name": np.uint64, "state": np.int8}
    READ: ClassVar[tuple[str, ...]] = ("slide", "slide_id", "state")

    @property
    def count(self) -> int:
        """Return the number of slides that readers see."""
        return int(np.count_nonzero(self.state != STATES[DROPPED]))

    @staticmethod
    def arrays(batch: pa.RecordBatch) -> dict[str, IntArray]:
        """Return the columns that are kept of a batch."""
        states = batch["state"].to_pylist()
        return {
            "slide": batch["slide"].to_numpy(),
            "name": hashes_of(batch["slide_id"]),
            "state": np.array([STATES.get(state, 0) for state in states], np.int8),
        }


@dataclass(frozen=True, kw_only=True)
class Codes:
    """Numbers that encode mpps and teachers of a catalog."""

    mpps: dict[float, int] = field(default_factory=dict)
    teachers: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class CatalogRows:
    """Rows of `catalog`, in table order.

    Attributes:
        slide: numbers [N].
        mpp: codes [N].
        teacher: codes [N]; -1 in a row of tiles.
        tiles: numbers of tiles [N].
        fragment: number of the fragment in the features table [N].
        row_start: first rows in the fragment [N].
        name: hashes of the slide_ids of the rows of tiles alone [T].
        mark: hashes of the marks in their shards' names [T]; 0 where there is no shard.
        codes: mpps and teachers of the codes.
        again: reads rows again by their positions, with all columns that are compared.
    """

    slide: IntArray
    mpp: IntArray
    teacher: IntArray
    tiles: IntArray
    fragment: IntArray
    row_start: IntArray
    name: IntArray
    mark: IntArray
    codes: Codes
    again: ReadAgain

    KINDS: ClassVar[dict[str, type]] = {
        "slide": np.int32,
        "mpp": np.int16,
        "teacher": np.int32,
        "tiles": np.int32,
        "fragment": np.int64,
        "row_start": np.int64,
        "name": np.uint64,
        "mark": np.uint64,
    }
    READ: ClassVar[tuple[str, ...]] = (
        "slide",
        "slide_id",
        "mpp",
        "teacher",
        "tiles",
        "crc32",
        "fragment",
        "row_start",
        "shard",
        "shard_bytes",
        "shard_crc32",
        "index_crc32",
    )

    @staticmethod
    def arrays(batch: pa.RecordBatch, codes: Codes) -> dict[str, IntArray]:
        """Return the columns that are kept of a batch; new mpps and teachers get codes."""
        plain = ("slide", "tiles", "fragment", "row_start")
        of_tiles = batch["teacher"].is_null()
        return {
            **{name: batch[name].to_numpy() for name in plain},
            "mpp": codes_of(batch["mpp"], codes.mpps).astype(np.int16),
            "teacher": codes_of(batch["teacher"], codes.teachers),
            "name": hashes_of(batch["slide_id"].filter(of_tiles)),
            "mark": hashes_of(batch["shard"].filter(of_tiles), MARK),
        }

    @property
    def tiles_rows(self) -> IntArray:
        """Return the positions of the rows of tiles [T]."""
        return np.flatnonzero(self.teacher == TILES)

    def at_mpp(self, mpp: float) -> IntArray:
        """Return the positions of the rows at an mpp, in the order of the features table."""
        rows = np.flatnonzero(self.mpp == self.codes.mpps.get(mpp, -1))
        return rows[np.lexsort((self.row_start[rows], self.fragment[rows]))]

    def rows(self, positions: IntArray) -> list[Row]:
        """Read rows again, in the order of the positions."""
        order = np.argsort(positions, kind="stable")
        rows: list[Row] = [{}] * len(positions)
        for place, row in zip(order.tolist(), self.again(positions[order]), strict=True):
            rows[place] = row
        return rows


def groups_of(sorted_values: IntArray) -> tuple[IntArray, IntArray]:
    """Return the first position of each run of equal values, and each value's run number."""
    if not len(sorted_values):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    is_first = np.concatenate([[True], sorted_values[1:] != sorted_values[:-1]])
    return np.flatnonzero(is_first), np.cumsum(is_first) - 1


def twice(numbers: IntArray) -> IntArray:
    """Return the positions of numbers that occur more than once, ascending.

    >>> twice(np.array([3, 1, 3, 2])).tolist()
    [0, 2]
    """
    order = np.argsort(numbers, kind="stable")
    starts, group = groups_of(numbers[order])
    several = np.diff(np.concatenate([starts, [len(numbers)]])) > 1
    return np.sort(order[several[group]])


def apart(columns: Sequence[IntArray], starts: IntArray) -> npt.NDArray[np.bool_]:
    """Return for each run of rows whether a column has several values in the run."""
    differs = np.zeros(len(starts), bool)
    if len(starts):
        for column in columns:
            differs |= np.maximum.reduceat(column, starts) != np.minimum.reduceat(column, starts)
    return differs
