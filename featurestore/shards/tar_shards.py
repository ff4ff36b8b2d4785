"""WebDataset shards: plain tars of `<tile_id>.jpg` and `<tile_id>.json`, and an index beside each.

The header is written here rather than by `tarfile` (62k against 20k samples/s on one core), with
no time, owner or order of its own, so that equal tiles always produce equal bytes. The index
is an Arrow IPC file (tile_id, offset, size), so that any tile is one positioned read away.
"""

import contextlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from featurestore.errors import DamageError, LakeError
from featurestore.ids import mpp_name
from featurestore.shards.shard_index import (
    BLOCK,
    ShardIndex,
    index_path,
    is_header_of,
    member_name,
    scan_shard,
    tar_header,
)
from featurestore.storage.full_disk import naming_full_disk
from featurestore.storage.read_errors import ADVICE, meaning_of, reading
from featurestore.storage.store import Store

JPEG_START = b"\xff\xd8"
#: Bytes of one request of a copy of a part of a shard.
RANGE_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A finished shard: path in the lake, bytes and CRC-32 of the tar, and number of tiles.

    `index_crc32` is the checksum of its index; None if it is not known.
    """

    path: str
    bytes: int
    crc32: int
    tiles: int
    index_crc32: int | None = None


class ShardWriter:
    """Writer of one shard; it and its index appear whole when the block ends without an error.

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

    def add(self, tile_id: int, jpeg: bytes, description: dict[str, Any]) -> None:
        """Append one tile; the keys must be ascending."""
        self._rows.append((tile_id, self._at + BLOCK, len(jpeg)))
        self._write_member(member_name(tile_id), jpeg)
        self._write_member(f"{tile_id:019d}.json", json.dumps(description).encode())

    def _write_member(self, name: str, content: bytes) -> None:
        self._write(tar_header(name, len(content)) + content + b"\0" * (-len(content) % BLOCK))

    def _write(self, content: bytes) -> None:
        with naming_full_disk(str(self._local.parent)):
            self._file.write(content)
        self._crc = zlib.crc32(content, self._crc)
        self._at += len(content)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._remove_unfinished()
            return
        try:
            self._write(b"\0" * 2 * BLOCK)
            with naming_full_disk(str(self._local.parent)):
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
        except BaseException:
            self._remove_unfinished()
            raise
        # The index first: whoever sees the tar finds the index as well.
        index = ShardIndex.of_rows(self._rows)
        self.store.write_bytes(index_path(self.path), index.to_bytes())
        self.store.publish(self._local, self.path)
        self.shard = Shard(
            path=self.path,
            bytes=self._at,
            crc32=self._crc,
            tiles=len(self._rows),
            index_crc32=index.crc32,
        )

    def _remove_unfinished(self) -> None:
        """Remove the unfinished files; closing a file on a full disk may fail too."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._local.unlink(missing_ok=True)


def check_shard(store: Store, row: Mapping[str, Any]) -> None:
    """Compare all bytes of a shard of a local lake with the catalog's checksum.

    A bucket checks what it keeps by itself, and the whole shard would travel once more.

    Args:
        store: the lake's files.
        row: row of a slide's tiles in the catalog, with a shard.

    Raises:
        DamageError: the shard is gone or not what was written; slide and mpp are named.
        AccessError: the shard can't be read now.
    """
    if not store.is_local:
        return
    subject = f"slide {row['slide_id']} at mpp {mpp_name(row['mpp'])}: shard {row['shard']}"
    with reading(store, f"{subject} can't be read"):
        scanned = scan_shard(store, row["shard"], with_index=False)
    if (scanned.bytes, scanned.crc32) != (row["shard_bytes"], row["shard_crc32"]):
        msg = f"{subject} is not what was written (checksum); {ADVICE}"
        raise DamageError(msg)


def _remote_scratch() -> Path:
    handle, name = tempfile.mkstemp(prefix="slidelake-", suffix=".tar")
    os.close(handle)
    return Path(name)


class ShardReader:
    """Reader of one shard's tiles by their keys, in any order. Safe for several threads at once.

    Args:
        store: the lake's files.
        path: the shard's path in the lake.
        index_crc32: checksum of its index, as the catalog names it; None if it names none.
        slide_id: slide of the tiles, for messages.

    Raises:
        DamageError: the shard or its index is gone, damaged or replaced.
        AccessError: they can't be read now, though they may be whole.
    """

    def __init__(
        self,
        store: Store,
        path: str,
        *,
        index_crc32: int | None = None,
        slide_id: str | None = None,
    ) -> None:
        self.path, self._store = path, store
        self._name = f"shard {path}" if slide_id is None else f"slide {slide_id}: shard {path}"
        self._fd: int | None = None
        self._copied: range | None = None  # bytes of a bucket's shard that are on this disk
        try:
            index = ShardIndex.from_bytes(store.read_bytes(index_path(path)))
            if store.is_local:
                self._fd = os.open(store.path(path), os.O_RDONLY)
                self._bytes = os.fstat(self._fd).st_size
        except (OSError, DamageError) as error:
            raise self._read_error(error) from error
        if index_crc32 not in {None, index.crc32}:
            fault = "can't be read: its index is not the one that was written"
            raise self._damage_error(fault)
        self.index, self.tile_id = index, index.tile_id
        self._offset, self._size = index.offset, index.size

    @classmethod
    def of(cls, store: Store, row: Mapping[str, Any]) -> Self:
        """Open the shard that a row of the catalog names.

        Args:
            store: the lake's files.
            row: row of a slide's tiles, with a shard.

        Raises:
            DamageError: the shard or its index is gone, damaged, or not the catalog's.
        """
        return cls(
            store, row["shard"], index_crc32=row.get("index_crc32"), slide_id=row["slide_id"]
        )

    def _damage_error(self, fault: str) -> DamageError:
        return DamageError(f"{self._name} {fault}; {ADVICE}")

    def _read_error(self, error: Exception) -> LakeError:
        return meaning_of(error, self._store, f"{self._name} can't be read")

    def __len__(self) -> int:
        return len(self.tile_id)

    def fetch(self, first: int = 0, stop: int | None = None) -> None:
        """Copy a bucket's shard to this machine's disk by one request; tiles are then read there.

        For a reader of all tiles, which would send a request for each batch. The copy has no name,
        so that nothing is left of it when the reader is closed or killed. Of a part of the tiles
        the bytes of these alone are copied, by one request for each 64 MB.

        Args:
            first: position of the first tile to be read.
            stop: position after the last tile to be read; None for the end.

        Raises:
            DamageError: the shard is gone.
            AccessError: it can't be read now.
            DiskFullError: there is no room for it in the folder of temporary files.
        """
        if self._fd is not None:
            return
        copy = _remote_scratch()
        try:
            with naming_full_disk(str(copy.parent)):
                if first == 0 and stop in {None, len(self)}:
                    self._store.fetch(self.path, copy)
                else:
                    self._fetch_range(copy, first, len(self) if stop is None else stop)
            self._fd = os.open(copy, os.O_RDONLY)
        except OSError as error:
            raise self._read_error(error) from error
        finally:
            copy.unlink(missing_ok=True)
        self._bytes = os.fstat(self._fd).st_size

    def _fetch_range(self, copy: Path, first: int, stop: int) -> None:
        """Write the bytes of some tiles to their places in a file; the others are a hole."""
        start = int(self._offset[first]) - BLOCK
        end = int(self._offset[stop - 1] + self._size[stop - 1])
        with copy.open("r+b") as file:
            file.truncate(end)
            for at in range(start, end, RANGE_BYTES):
                file.seek(at)
                file.write(self._store.read_range(self.path, at, min(RANGE_BYTES, end - at)))
        self._copied = range(start, end)

    def jpeg(self, position: int) -> bytes:
        """Return the JPEG bytes of the tile at a position of `tile_id`."""
        return bytes(self._adjacent_jpegs(position, position + 1)[0])

    def jpegs(self, tile_id: npt.NDArray[np.int64]) -> list[memoryview]:
        """Return the JPEG bytes of tiles by their keys; adjacent tiles are read at once.

        The runs of adjacent tiles are read side by side from a bucket. The bytes are views of one
        buffer a run: a copy of each would cost half as much again as the read.

        Raises:
            DamageError: a key is not in the shard, or what is there is not its tile.
        """
        at = self.positions(tile_id)
        ends = np.flatnonzero(np.diff(at) != 1)
        firsts = at[np.append(0, ends + 1)].tolist() if len(at) else []
        stops = (at[np.append(ends, len(at) - 1)] + 1).tolist() if len(at) else []
        spans = [self._span(first, stop) for first, stop in zip(firsts, stops, strict=True)]
        contents = self._read_all(spans)
        jpegs: list[memoryview] = []
        for first, stop, content in zip(firsts, stops, contents, strict=True):
            jpegs += self._cut_out(first, stop, content)
        return jpegs

    def _adjacent_jpegs(self, first: int, stop: int) -> list[memoryview]:
        return self._cut_out(first, stop, self._read(*self._span(first, stop)))

    def _span(self, first: int, stop: int) -> tuple[int, int]:
        """Return the first byte and the number of bytes of adjacent tiles with their headers."""
        start = int(self._offset[first]) - BLOCK
        return start, int(self._offset[stop - 1]) + int(self._size[stop - 1]) - start

    def _cut_out(self, first: int, stop: int, content: bytes) -> list[memoryview]:
        """Return the JPEGs of adjacent tiles; each must follow its own header.

        The header names the tile and its size, so that no index can lead to another tile's JPEG,
        nor a part of one.
        """
        offsets = self._offset[first:stop].tolist()
        sizes = self._size[first:stop].tolist()
        keys = self.tile_id[first:stop].tolist()
        start = offsets[0] - BLOCK
        view, jpegs = memoryview(content), []
        for key, offset, size in zip(keys, offsets, sizes, strict=True):
            at = offset - start
            jpeg = view[at : at + size]
            named = is_header_of(content[at - BLOCK : at], member_name(key), size)
            if not named or len(jpeg) != size or jpeg[:2] != JPEG_START:
                fault = f"is damaged at tile {key}"
                raise self._damage_error(fault)
            jpegs.append(jpeg)
        return jpegs

    def _read_all(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        if self._fd is not None:
            return [self._read(start, size) for start, size in spans]
        try:
            return self._store.read_ranges(self.path, spans)
        except OSError as error:
            raise self._read_error(error) from error

    def _read(self, start: int, size: int) -> bytes:
        try:
            if self._fd is not None and (self._copied is None or start in self._copied):
                # A damaged index may ask for more than any memory holds.
                return os.pread(self._fd, max(min(size, self._bytes - start), 0), start)
            return self._store.read_range(self.path, start, size)
        except OSError as error:
            raise self._read_error(error) from error

    def positions(self, tile_id: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the positions of the given keys in this shard.

        Raises:
            DamageError: a key is not in the shard; the first such is named.
        """
        at = np.minimum(np.searchsorted(self.tile_id, tile_id), max(len(self) - 1, 0))
        missing = self.tile_id[at] != tile_id if len(self) else np.ones(len(tile_id), bool)
        if missing.any():
            fault = f"does not hold every requested tile: there is no {tile_id[missing][0]}"
            raise self._damage_error(fault)
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
