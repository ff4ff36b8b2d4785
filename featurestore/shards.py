"""WebDataset shards: plain tars of `<tile_id>.jpg` and `<tile_id>.json`, and an index beside each.

The header is written here rather than by `tarfile` (62k against 20k samples/s on one core), with
no time, owner or order of its own, so that the same tiles always give the same bytes. The index
is an Arrow IPC file (tile_id, offset, size), so that any tile is one positioned read away.
"""

import contextlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.errors import DamageError
from featurestore.full_disk import naming_full_disk
from featurestore.storage import Store

BLOCK = 512
# Of a ustar header: mode, user and group; time; then type, link and magic.
OWNER, TIME = b"0000644\0" + b"0000000\0" * 2, b"00000000000\0"
REST = (b"0" + b"\0" * 100 + b"ustar\x0000").ljust(BLOCK - 156, b"\0")
FIXED_SUM = sum(OWNER) + sum(TIME) + sum(b" " * 8) + sum(REST)
JPEG_START = b"\xff\xd8"
INDEX_SCHEMA = pa.schema([("tile_id", pa.int64()), ("offset", pa.int64()), ("size", pa.int32())])


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A finished shard: its path in the lake, bytes and CRC-32 of the tar, and tiles in it."""

    path: str
    bytes: int
    crc32: int
    tiles: int


def tar_header(name: str, size: int) -> bytes:
    """A ustar header of a regular file with time, user and group zero.

    >>> len(tar_header("1.jpg", 10))
    512
    """
    called, bytes_ = name.encode().ljust(100, b"\0"), b"%011o\0" % size
    # The sum of all bytes; those that are the same in every header are summed once.
    checksum = b"%06o\0 " % (sum(called) + sum(bytes_) + FIXED_SUM)
    return called + OWNER + bytes_ + TIME + checksum + REST


def member_name(tile_id: int) -> str:
    """Name of a tile's JPEG in its shard.

    >>> member_name(7)
    '0000000000000000007.jpg'
    """
    return f"{tile_id:019d}.jpg"


def index_path(shard: str) -> str:
    """Path of the index of a shard."""
    return shard.removesuffix(".tar") + ".idx"


class ShardWriter:
    """Writes one shard; leaving the block without an error makes it and its index appear whole.

    Args:
        store: the lake's files.
        path: the shard's path in the lake.
    """

    def __init__(self, store: Store, path: str) -> None:
        self.store, self.path = store, path
        self._local = store.scratch(path) if store.is_local else _remote_scratch()
        self._file = self._local.open("wb")
        self._at, self._crc = 0, 0
        self._rows: list[tuple[int, int, int]] = []
        self.shard: Shard | None = None

    def add(self, tile_id: int, jpeg: bytes, about: dict[str, Any]) -> None:
        """Append one tile; tiles must come in the order of their keys."""
        self._rows.append((tile_id, self._at + BLOCK, len(jpeg)))
        self._member(member_name(tile_id), jpeg)
        self._member(f"{tile_id:019d}.json", json.dumps(about).encode())

    def _member(self, name: str, data: bytes) -> None:
        self._write(tar_header(name, len(data)) + data + b"\0" * (-len(data) % BLOCK))

    def _write(self, data: bytes) -> None:
        with naming_full_disk(str(self._local.parent)):
            self._file.write(data)
        self._crc = zlib.crc32(data, self._crc)
        self._at += len(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._abandon()
            return
        try:
            self._write(b"\0" * 2 * BLOCK)
            with naming_full_disk(str(self._local.parent)):
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
        except BaseException:
            self._abandon()
            raise
        # The index first: whoever sees the tar finds the index as well.
        self.store.write_bytes(index_path(self.path), _index_bytes(self._rows))
        self.store.publish(self._local, self.path)
        self.shard = Shard(path=self.path, bytes=self._at, crc32=self._crc, tiles=len(self._rows))

    def _abandon(self) -> None:
        """Remove what was written; closing a file on a full disk may fail as its writing did."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._local.unlink(missing_ok=True)


def _remote_scratch() -> Path:
    handle, name = tempfile.mkstemp(prefix="slidelake-", suffix=".tar")
    os.close(handle)
    return Path(name)


def _index_bytes(rows: list[tuple[int, int, int]]) -> bytes:
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
    table = pa.table(
        [pa.array(c, f.type) for c, f in zip(columns, INDEX_SCHEMA, strict=True)],
        schema=INDEX_SCHEMA,
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, INDEX_SCHEMA) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


class ShardReader:
    """Reads tiles of one shard by their keys, in any order. Safe for several threads at once.

    Args:
        store: the lake's files.
        path: the shard's path in the lake.

    Raises:
        DamageError: the shard or its index is gone or unreadable.
    """

    def __init__(self, store: Store, path: str) -> None:
        self.path, self._store = path, store
        self._fd: int | None = None
        try:
            table = pa.ipc.open_file(pa.py_buffer(store.read_bytes(index_path(path)))).read_all()
            if store.is_local:
                self._fd = os.open(store.path(path), os.O_RDONLY)
        except (OSError, pa.ArrowInvalid) as error:
            msg = f"shard {path} can't be read: {error}"
            raise DamageError(msg) from error
        self.tile_id: npt.NDArray[np.int64] = table["tile_id"].to_numpy()
        self._offset = table["offset"].to_numpy()
        self._size = table["size"].to_numpy()
        if (np.diff(self._offset) < self._size[:-1]).any() or (self._size <= 0).any():
            msg = f"shard {path} can't be read: its index is not in the order of the file"
            raise DamageError(msg)

    def __len__(self) -> int:
        return len(self.tile_id)

    def jpeg(self, position: int) -> bytes:
        """The JPEG bytes of the tile at a position of `tile_id`."""
        return bytes(self._run(position, position + 1)[0])

    def jpegs(self, tile_id: npt.NDArray[np.int64]) -> list[memoryview]:
        """The JPEG bytes of tiles by their keys; neighbours in the shard are read in one piece.

        They are views of that piece: to copy each would cost half as much again as to read it.

        Raises:
            DamageError: a key is not in the shard, or what is there is not its tile.
        """
        at = self.positions(tile_id)
        found: list[memoryview] = []
        for run in np.split(at, np.flatnonzero(np.diff(at) != 1) + 1) if len(at) else ():
            found += self._run(int(run[0]), int(run[-1]) + 1)
        return found

    def _run(self, first: int, stop: int) -> list[memoryview]:
        """The JPEGs of neighbours; each must stand under its own name and look like one."""
        offsets = self._offset[first:stop].tolist()
        sizes = self._size[first:stop].tolist()
        start = offsets[0] - BLOCK
        data = self._read(start, offsets[-1] + sizes[-1] - start)
        view, found = memoryview(data), []
        for key, offset, size in zip(
            self.tile_id[first:stop].tolist(), offsets, sizes, strict=True
        ):
            at = offset - start
            name = member_name(key).encode() + b"\0"
            jpeg = view[at : at + size]
            if not data.startswith(name, at - BLOCK) or len(jpeg) != size or jpeg[:2] != JPEG_START:
                msg = f"shard {self.path} is damaged at tile {key}"
                raise DamageError(msg)
            found.append(jpeg)
        return found

    def _read(self, start: int, size: int) -> bytes:
        if self._fd is not None:
            return os.pread(self._fd, size, start)
        return self._store.read_range(self.path, start, size)

    def positions(self, tile_id: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where the given keys are in this shard.

        Raises:
            DamageError: a key is not in the shard; the first such is named.
        """
        at = np.minimum(np.searchsorted(self.tile_id, tile_id), max(len(self) - 1, 0))
        missing = self.tile_id[at] != tile_id if len(self) else np.ones(len(tile_id), bool)
        if missing.any():
            first = tile_id[missing][0]
            msg = f"shard {self.path} does not hold every asked tile: there is no {first}"
            raise DamageError(msg)
        return at.astype(np.int64)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        for position, tile_id in enumerate(self.tile_id):
            yield int(tile_id), self.jpeg(position)

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
