"""Parts of a teacher's column: the rows that one worker computed of a fragment that is shared out.

A part is a file in the lake's folder `parts`, named by fragment, column and rows, so that a run
that was cut short is gone on with. No version names it. Whole parts are joined into the fragment's
column, byte for byte the one that a single worker writes. The file holds rows of float16, then a
JSON object, then its length, its CRC-32 and `MAGIC`: what is not whole shows.
"""

import contextlib
import hashlib
import json
import re
import struct
import zlib
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.errors import DamageError, LakeError
from featurestore.storage.full_disk import naming_full_disk
from featurestore.storage.read_errors import meaning_of
from featurestore.storage.store import FileInfo, Store
from featurestore.tables.column_rows import ColumnRows
from featurestore.tables.lance_columns import ColumnFile, ColumnWriter

#: Folder of the parts in a lake.
PARTS = "parts"
MAGIC = b"slpart01"
TAIL = struct.Struct("<QI8s")
#: Bytes of rows that a join holds in memory.
PIECE_BYTES = 8 << 20
_NAME = re.compile(r"parts/(\d+)-([0-9a-f]{20})-(\d+)-(\d+)\.part")


class PartDamageError(DamageError):
    """Raised where a part is not whole: its rows are to be computed again."""

    def __init__(self, path: str, fault: str) -> None:
        super().__init__(f"{path} {fault}; its rows are computed again")
        self.path = path

    def __reduce__(self) -> tuple[type[LakeError], tuple[str, str]]:
        return type(self), (self.path, "is not whole")


@dataclass(frozen=True, kw_only=True)
class PartName:
    """The name of a part.

    Attributes:
        fragment: the fragment's id.
        key: hash of all that decides the rows; see `column_key`.
        first: number of its first row in the fragment.
        stop: number of the row after its last.
    """

    fragment: int
    key: str
    first: int
    stop: int

    @property
    def path(self) -> str:
        """Return the path of the file, relative to the lake."""
        return f"{PARTS}/{self.fragment:06d}-{self.key}-{self.first}-{self.stop}.part"


def column_key(field: pa.Field, mpp: float, slides: Sequence[Mapping[str, Any]]) -> str:
    """Return a hash of all that decides the rows of a teacher's column in a fragment.

    Name and identity of the column, and pixels, place and choice of tiles of each slide: a slide
    that was scanned again, or a fragment that was compacted, has parts of other names.
    """
    names = ("slide", "row_start", "tiles", "crc32", "shard", "shard_crc32", "where")
    rows: list[list[Any]] = [[row.get(name) for name in names] for row in slides]
    for facts, row in zip(rows, slides, strict=True):
        if "finer" in row:  # a field of view that is put together from finer tiles
            finer = sorted(row["finer"].items())
            facts.append([[at, one["crc32"], one["shard_crc32"]] for at, one in finer])
    meta = {k.decode(): v.decode() for k, v in sorted((field.metadata or {}).items())}
    text = json.dumps([field.name, str(field.type), meta, mpp, rows])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def parts_in(store: Store) -> dict[tuple[int, str], list[PartName]]:
    """Return the parts that a lake has, by fragment and column, in row order: one listing."""
    parts: dict[tuple[int, str], list[PartName]] = {}
    for file in store.walk(PARTS):
        if match := _NAME.fullmatch(file.path):
            fragment, key, first, stop = match.groups()
            name = PartName(fragment=int(fragment), key=key, first=int(first), stop=int(stop))
            parts.setdefault((name.fragment, key), []).append(name)
    for names in parts.values():
        names.sort(key=lambda name: (name.first, -name.stop))
    return parts


def part_files(store: Store) -> list[FileInfo]:
    """Return all files among the parts, unfinished files of killed workers included."""
    return list(store.walk(PARTS))


class PartWriter(ColumnRows):
    """Writer of one part; it appears whole by `finish`, or not at all.

    Args:
        store: the lake's files.
        name: name of the part.
        field: the teacher's column.
    """

    def __init__(self, store: Store, name: PartName, field: pa.Field) -> None:
        super().__init__(field, name.fragment, first=name.first)
        self.name = name
        self._store, self._scratch = store, store.scratch(name.path)
        self._file: BinaryIO = self._scratch.open("wb")
        self._crc = 0
        self._runs: list[list[int]] = []  # slide, first row, rows

    def append(self, slide: int, stored: npt.NDArray[np.float16]) -> None:
        """Append features [N, D] of the next tiles as they are stored."""
        if not len(stored):
            return
        content = np.ascontiguousarray(stored, dtype="<f2").data.cast("B")
        with naming_full_disk(str(self._scratch.parent)):
            self._file.write(content)
        self._crc = zlib.crc32(content, self._crc)
        last = self._runs[-1] if self._runs else None
        if last is not None and last[0] == slide and last[1] + last[2] == self.rows:
            last[2] += len(stored)
        else:
            self._runs.append([slide, self.rows, len(stored)])
        self.rows += len(stored)

    def skip(self, rows: int) -> None:
        """Leave out rows without features."""
        self.rows += rows

    def finish(self) -> str:
        """Write the end of the file, move it to its place and return its path.

        Raises:
            LakeError: it has other rows than its name says.
        """
        if self.rows != self.name.stop:
            msg = f"{self.name.path} ends at row {self.rows}"
            raise LakeError(msg)
        end = json.dumps(
            {
                "column": self.field.name,
                "dim": self.field.type.list_size,
                "runs": self._runs,
                "crc32": self._crc,
            }
        ).encode()
        with naming_full_disk(str(self._scratch.parent)):
            self._file.write(end + TAIL.pack(len(end), zlib.crc32(end), MAGIC))
            self._file.close()
        self._store.publish(self._scratch, self.name.path)
        return self.name.path

    def discard(self) -> None:
        """Remove the unfinished file; does nothing after `finish`."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._scratch.unlink(missing_ok=True)


def join_parts(
    store: Store, mpp: float, field: pa.Field, fragment: int, rows: int, paths: Sequence[str]
) -> ColumnFile:
    """Write a fragment's column from its parts, one after the other.

    Args:
        store: the lake's files.
        mpp: microns per pixel of the features table.
        field: the teacher's column.
        fragment: the fragment's id.
        rows: physical rows of the fragment.
        paths: paths of the parts, in row order.

    Raises:
        PartDamageError: a part is gone, or not what was written.
    """
    opened = _opened_parts(store, paths)
    with ColumnWriter(store, mpp, field, fragment) as writer, contextlib.closing(opened):
        for path, file in opened:
            with file:
                _copy_part(file, path, writer)
        writer.skip(rows - writer.rows)
        return writer.finish()


def _opened_parts(store: Store, paths: Sequence[str]) -> Generator[tuple[str, BinaryIO]]:
    """Yield each part with its path, open; the next one is fetched meanwhile."""
    ahead: deque[tuple[str, Future[BinaryIO]]] = deque()
    with ThreadPoolExecutor(1) as fetcher:
        try:
            for path in paths:
                ahead.append((path, fetcher.submit(_open_part, store, path)))
                if len(ahead) > 1:
                    first, future = ahead.popleft()
                    yield first, future.result()
            for path, future in list(ahead):
                yield path, future.result()
                ahead.popleft()
        finally:
            for _, future in ahead:
                with contextlib.suppress(Exception):
                    future.result().close()


def _open_part(store: Store, path: str) -> BinaryIO:
    """Open a part; of a bucket's a copy on this machine's disk, which has no name."""
    local = Path(store.path(path)) if store.is_local else store.scratch(path)
    try:
        if not store.is_local:
            with naming_full_disk(str(local.parent)):
                store.fetch(path, local)
        return local.open("rb")
    except FileNotFoundError as error:
        fault = "is gone"
        raise PartDamageError(path, fault) from error
    except OSError as error:
        raise meaning_of(error, store, f"{path} can't be read") from error
    finally:
        if not store.is_local:
            local.unlink(missing_ok=True)


def _copy_part(file: BinaryIO, path: str, writer: ColumnWriter) -> None:
    """Append the rows of an open part to a column, and compare their checksum."""
    description = _description(file, path)
    dim = writer.field.type.list_size
    if (description["column"], description["dim"]) != (writer.field.name, dim):
        fault = f"is of column {description['column']!r}"
        raise PartDamageError(path, fault)
    file.seek(0)
    crc, most = 0, max(1, PIECE_BYTES // (2 * dim))
    for slide, first, rows in description["runs"]:
        writer.skip(first - writer.rows)
        for start in range(0, rows, most):
            content = file.read(2 * dim * min(most, rows - start))
            crc = zlib.crc32(content, crc)
            writer.append(slide, np.frombuffer(content, "<f2").reshape(-1, dim))
    if crc != description["crc32"]:
        fault = "is not what was written (checksum)"
        raise PartDamageError(path, fault)


def _description(file: BinaryIO, path: str) -> dict[str, Any]:
    """Return what the end of a part says of its rows.

    Raises:
        PartDamageError: the file is too short for its rows, or its end is none.
    """
    size = file.seek(0, 2)
    fault = "has no end"
    if size < TAIL.size:
        raise PartDamageError(path, fault)
    file.seek(size - TAIL.size)
    length, crc, magic = TAIL.unpack(file.read(TAIL.size))
    if magic != MAGIC or length > size - TAIL.size:
        raise PartDamageError(path, fault)
    file.seek(size - TAIL.size - length)
    end = file.read(length)
    if zlib.crc32(end) != crc:
        raise PartDamageError(path, fault)
    description: dict[str, Any] = json.loads(end)
    rows = sum(count for _, _, count in description["runs"])
    if 2 * rows * description["dim"] != size - TAIL.size - length:
        fault = "has not the rows that its end names"
        raise PartDamageError(path, fault)
    return description
