"""A local file that holds a remote one in part: ranges arrive when they are needed.

It has the full size from the start and holes (zeros) where nothing was fetched. Each byte travels
once, in parallel requests, so that a round trip of 30 ms costs little.
"""

import io
import os
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ingest.errors import SlideError
from ingest.remote.remote_files import FileState, RemoteFile
from ingest.remote.scratch import check_room, room_is_told

PART_BYTES = 8 << 20
LEAST_PART_BYTES = 1 << 20
AT_ONCE = 8  # so up to 64 MB are in memory
GAP_BYTES = 64 << 10  # ranges this near to each other are one request
BLOCK_BYTES = 16 << 10  # what a reader of directories fetches at once

Range = tuple[int, int]


def merged(ranges: Iterable[Range], gap: int = 0) -> list[Range]:
    """Return sorted ranges [start, end) without overlap; those at most `gap` apart are joined.

    >>> merged([(5, 9), (0, 2), (3, 4), (9, 9)], gap=1)
    [(0, 9)]
    """
    joined: list[Range] = []
    for start, end in sorted(one for one in ranges if one[0] < one[1]):
        if joined and start <= joined[-1][1] + gap:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def without(ranges: Iterable[Range], had: Sequence[Range]) -> list[Range]:
    """Return the parts of `ranges` outside `had`, which is sorted and without overlap.

    >>> without([(0, 10)], [(2, 3), (5, 12)])
    [(0, 2), (3, 5)]
    """
    left: list[Range] = []
    for start, end in ranges:
        at = start
        first = bisect_right(had, at, key=lambda one: one[1])
        for low, high in had[first:]:
            if low >= end:
                break
            if at < low:
                left.append((at, low))
            at = max(at, high)
        if at < end:
            left.append((at, end))
    return left


def parts(ranges: Iterable[Range], size: int) -> Iterator[Range]:
    """Yield the ranges in pieces of at most `size` bytes."""
    for start, end in ranges:
        for at in range(start, end, size):
            yield at, min(at + size, end)


class PartialFile:
    """A local file that fills with a remote file's bytes as they are needed.

    Args:
        remote: the remote file.
        state: size and marks that the server stated; a file that differs from them is refused.
        local: path of the local file, in a folder that exists.

    Attributes:
        bytes_read: number of bytes that were fetched.

    Raises:
        SlideError: the disk has no room for the file.
    """

    def __init__(self, remote: RemoteFile, state: FileState, local: Path) -> None:
        self.remote, self.state, self.local = remote, state, local
        self.size = state.size or 0
        self.bytes_read = 0
        self._had: list[Range] = []
        self._streamed = False
        self._lock = threading.Lock()
        check_room(local.parent, self.size, remote.shown)
        self._file = os.open(local, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(self._file, self.size)

    def need(self, ranges: Iterable[Range]) -> None:
        """Fetch byte ranges [start, end) into the local file, unless they are there.

        Raises:
            SlideError: the bytes can't be read, or the file changed meanwhile.
        """
        if self.fill(ranges):
            self._check()

    def fill(self, ranges: Iterable[Range]) -> int:
        """Fetch ranges without a check for changes; return the number of bytes fetched."""
        with self._lock, room_is_told(self.local.parent, self.remote.shown):
            inside = [(max(0, start), min(end, self.size)) for start, end in ranges]
            missing = without(merged(inside, GAP_BYTES), self._had)
            total = sum(end - start for start, end in missing)
            piece = min(PART_BYTES, max(LEAST_PART_BYTES, -(-total // AT_ONCE)))
            pieces = list(parts(missing, piece))
            if len(pieces) > 1:
                with ThreadPoolExecutor(AT_ONCE) as pool:
                    list(pool.map(self._fetch, pieces))
            else:
                list(map(self._fetch, pieces))
            self._had = merged([*self._had, *missing])
            self.bytes_read += total
            return total

    def need_all(self) -> None:
        """Fetch the whole file, in one stream where the server accepts no ranges.

        Raises:
            SlideError: the file can't be read, or it changed or ended early meanwhile.
        """
        if self.is_whole:
            return
        if self.state.ranges and self.state.size is not None:
            self.need([(0, self.size)])
            return
        with room_is_told(self.local.parent, self.remote.shown):
            self._stream()
        self._check()

    def _stream(self) -> None:
        at = 0
        for block in self.remote.stream():
            os.pwrite(self._file, block, at)
            at += len(block)
            self.bytes_read += len(block)
        if self.state.size is not None and at != self.size:
            msg = f"{self.remote.shown} broke off: {at} of {self.size} bytes came"
            raise SlideError(msg)
        self.size, self._had, self._streamed = at, [(0, at)], True

    def _fetch(self, piece: Range) -> None:
        piece_bytes = memoryview(self.remote.read(*piece))
        at = piece[0]
        while piece_bytes:
            done = os.pwrite(self._file, piece_bytes, at)
            piece_bytes, at = piece_bytes[done:], at + done

    def _check(self) -> None:
        now = self.remote.state()
        if (now.size, now.marks) != (self.state.size, self.state.marks):
            msg = f"{self.remote.shown} changed while it was read; run again when it is complete"
            raise SlideError(msg)

    @property
    def is_whole(self) -> bool:
        """Whether every byte of the file is in the local file."""
        size_is_known = self._streamed or self.state.size is not None
        return size_is_known and not without([(0, self.size)], self._had)

    def read_at(self, start: int, size: int) -> bytes:
        """Return bytes from `start` on, fetched in whole blocks if they are missing."""
        end = min(start + size, self.size)
        low = start // BLOCK_BYTES * BLOCK_BYTES
        self.fill([(low, -(-end // BLOCK_BYTES) * BLOCK_BYTES)] if start < end else [])
        return os.pread(self._file, max(0, end - start), start)

    def close(self) -> None:
        """Close the local file; its bytes stay on the disk."""
        os.close(self._file)


class PartialReader(io.RawIOBase):
    """A `PartialFile` as an open file for reading."""

    def __init__(self, file: PartialFile) -> None:
        super().__init__()
        self._partial, self._at = file, 0

    def readable(self) -> bool:
        """Return True: the file can be read."""
        return True

    def seekable(self) -> bool:
        """Return True: the file can be read from any byte."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a byte, counted from the start, the present byte or the end."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._partial.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        """Return the number of the byte that is read next."""
        return self._at

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        """Fill the buffer from the present byte on; return the number of bytes read."""
        chunk = self._partial.read_at(self._at, len(buffer))
        buffer[: len(chunk)] = chunk
        self._at += len(chunk)
        return len(chunk)
