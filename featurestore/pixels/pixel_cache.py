"""Decoded tiles on a local disk, so that the second epoch need not decode them again.

One file for the tiles of a stream: a table of checksums, 8 bytes a tile, then a slot of pixels for
each. Its name is a hash of the shards' checksums and of all that decides the pixels, so a file can
only be of the same pixels. A slot counts once its checksum, which is written after the pixels and
begins with the tile's key, agrees with what is read: after a kill, a full disk or a flipped bit the
tile is decoded again. Several processes may fill one file: they write the same bytes.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import warnings
import weakref
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from featurestore.errors import LakeError
from featurestore.pixels.tile_pixels import PixelDecoder

VARIABLE = "SLIDELAKE_PIXEL_CACHE"
SUFFIX = ".pixels"
LAYOUT = "1"
HELD = 1 << 32  # tells a checksum of 0 from a slot that was never written
SPARE_BYTES = 1 << 30  # left free: others write to the disk too
PAGE = 4096

Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]


def cache_folder(folder: str | None = None) -> Path:
    """Return the folder of decoded tiles.

    It is `folder`, $SLIDELAKE_PIXEL_CACHE, or a folder in the user's cache.
    """
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    named = folder or os.environ.get(VARIABLE) or f"{user}/slidelake/pixels"
    return Path(named).expanduser()


class PixelCache:
    """Decoded tiles of a selection in a file. Safe for several threads and processes.

    The first tiles of the selection have a slot, as many as fit. Files that no process uses are
    removed, those of the longest unused first, as far as they would not fit beside this one.

    Args:
        folder: folder of the file, on a disk of this machine.
        slides: catalog rows of the slides, in the order of the tiles.
        decoder: what makes the pixels.
        most_bytes: greatest size of the file.

    Attributes:
        path: the file.
        tiles: number of tiles that have a slot.

    Raises:
        LakeError: the folder can't be written to.
    """

    def __init__(
        self, folder: Path, slides: pl.DataFrame, decoder: PixelDecoder, most_bytes: int
    ) -> None:
        self.path = folder / f"{_mark(slides, decoder)}{SUFFIX}"
        self._shape = (decoder.side_px, decoder.side_px, 3)
        self._slot = int(np.prod(self._shape))
        all_tiles = int(slides["tiles"].sum())
        self._table_bytes = -(-8 * all_tiles // PAGE) * PAGE
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = _opened(self.path)
        except OSError as error:
            msg = (
                f"no decoded tiles can be kept in {folder} ({error.strerror}); set {VARIABLE} to a "
                "folder on a local disk, or read without a cache of pixels"
            )
            raise LakeError(msg) from error
        self.close = weakref.finalize(self, os.close, self._file)
        needed = min(all_tiles * self._slot + self._table_bytes, most_bytes)
        _make_room(folder, self.path, needed, most_bytes)
        free = shutil.disk_usage(folder).free - SPARE_BYTES + os.fstat(self._file).st_blocks * 512
        room = min(needed, free) - self._table_bytes
        self.tiles = max(0, min(all_tiles, room // self._slot))
        self._sums = np.zeros(self.tiles, np.int64)
        self._disk_full = False
        self.refresh()

    def refresh(self) -> None:
        """Read which slots other processes have filled."""
        kept = os.pread(self._file, 8 * self.tiles, 0)
        self._sums[: len(kept) // 8] = np.frombuffer(kept[: len(kept) // 8 * 8], "<i8")

    def has(self, rows: Int64Array) -> npt.NDArray[np.bool_]:
        """Return for each row of the selection whether its slot is filled [N]."""
        held = np.zeros(len(rows), bool)
        inside = rows < self.tiles
        held[inside] = self._sums[rows[inside]] != 0
        return held

    def read(self, row: int, tile_id: int, into: UInt8Array) -> bool:
        """Read the pixels of a row into an array; return whether they are those of the tile."""
        if os.preadv(self._file, [into.data], self._place(row)) != self._slot:
            return False
        return bool(self._sums[row] == _sum(tile_id, into))

    def write(self, row: int, tile_id: int, pixels: UInt8Array) -> None:
        """Keep the pixels of a row that has a slot; a full disk ends that, with a warning."""
        if row >= self.tiles or self._disk_full:
            return
        try:
            kept_sum = _sum(tile_id, pixels)
            self._written(pixels.data, self._place(row))
            self._written(np.array([kept_sum], "<i8").data, 8 * row)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._disk_full = True
            msg = f"the disk of {self.path.parent} is full: tiles are decoded again in each epoch"
            warnings.warn(msg, RuntimeWarning, stacklevel=2)
        else:
            self._sums[row] = kept_sum

    def _written(self, content: memoryview, place: int) -> None:
        view = content.cast("B")
        while view:
            count = os.pwrite(self._file, view, place)
            view, place = view[count:], place + count

    def _place(self, row: int) -> int:
        return self._table_bytes + row * self._slot


def _mark(slides: pl.DataFrame, decoder: PixelDecoder) -> str:
    """Return a hash of the stored tiles and of all that decides their pixels."""
    shards = slides.select("slide", "tiles", "shard_bytes", "shard_crc32").rows()
    return hashlib.sha256(f"{LAYOUT} {decoder.mark} {shards}".encode()).hexdigest()[:32]


def _sum(tile_id: int, pixels: UInt8Array) -> int:
    return HELD | zlib.crc32(pixels.data, zlib.crc32(tile_id.to_bytes(8, "little")))


def _opened(path: Path) -> int:
    """Open a file that is there for as long as it is open: its users hold a shared lock."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(file, fcntl.LOCK_SH)
        # Between its opening and its locking another process may have removed it.
        if os.fstat(file).st_nlink:
            os.utime(file)
            return file
        os.close(file)


def _make_room(folder: Path, own: Path, needed: int, most_bytes: int) -> None:
    """Remove files that no process uses until all of them and the own one fit."""
    others = [path for path in folder.glob(f"*{SUFFIX}") if path != own]
    facts = []
    for path in others:
        with contextlib.suppress(FileNotFoundError):
            state = path.stat()
            facts.append((state.st_mtime, state.st_blocks * 512, path))
    room = most_bytes - needed - sum(size for _, size, _ in facts)
    for _, size, path in sorted(facts):
        if room >= 0:
            return
        if _removed(path):
            room += size


def _removed(path: Path) -> bool:
    """Remove a file unless a process has it open; return whether it is gone."""
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True
