"""Node-local room for slides from elsewhere: one folder per copy, gone with whoever made it.

A folder's maker holds a lock beside it that ends with its process, however that ends; the next
one to make a folder removes folders whose lock nobody holds. Process numbers would not do: two
containers that share a disk have the same numbers.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ingest.errors import SlideError

VARIABLE = "SLIDELAKE_SCRATCH"
PREFIX = "slidelake-copy-"
SPARE_BYTES = 64 << 20  # left free: others write there too


def scratch_root(folder: str | None = None) -> Path:
    """Return the folder for copies: `folder`, $SLIDELAKE_SCRATCH, or the temporary folder."""
    return Path(folder or os.environ.get(VARIABLE) or tempfile.gettempdir()).expanduser()


@contextlib.contextmanager
def scratch_folder(folder_for_copies: str | None = None) -> Iterator[Path]:
    """Yield a new folder that is removed at the end, or by a later call if this process is killed.

    Raises:
        SlideError: the folder can't be made.
    """
    root = scratch_root(folder_for_copies)
    try:
        root.mkdir(parents=True, exist_ok=True)
        sweep(root)
        folder, lock = _locked(root)
    except OSError as error:
        msg = f"no folder for copies of slides can be made in {root} ({error.strerror}); set "
        msg += f"{VARIABLE} to a folder on a local disk"
        raise SlideError(msg) from error
    try:
        yield folder
    finally:
        _remove(folder, lock)


def sweep(root: Path) -> list[str]:
    """Remove the folders of processes that have ended; return the names of the removed folders."""
    removed = []
    for path in sorted(root.glob(f"{PREFIX}*.lock")):
        with contextlib.suppress(OSError):  # held by a living process, or swept by another
            lock = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                continue
            _remove(path.with_suffix(""), lock)
            removed.append(path.stem)
    return removed


def _locked(root: Path) -> tuple[Path, int]:
    while True:
        folder = root / f"{PREFIX}{secrets.token_hex(6)}"
        lock = os.open(f"{folder}.lock", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between its making and its locking another process may have swept it.
            if os.fstat(lock).st_nlink:
                folder.mkdir(mode=0o700)
                return folder, lock
        os.close(lock)


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    Path(f"{folder}.lock").unlink(missing_ok=True)
    os.close(lock)


def check_room(folder: Path, size: int, name: str) -> None:
    """Refuse a file for which the disk has no room.

    Raises:
        SlideError: fewer bytes are free than the file needs with a reserve.
    """
    free = shutil.disk_usage(folder).free
    if free < size + SPARE_BYTES:
        raise SlideError(_full(folder, name, f"{size / 1e9:.2f} GB are needed, {free / 1e9:.2f}"))


@contextlib.contextmanager
def room_is_told(folder: Path, name: str) -> Iterator[None]:
    """Name the disk in the error if it gets full inside, as others may write to it too."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise SlideError(_full(folder, name, "it got full while copying, 0")) from error


def _full(folder: Path, name: str, room: str) -> str:
    return (
        f"{name} does not fit into {folder.parent}: {room} GB are free; set {VARIABLE} to a "
        "folder on a larger disk, or run fewer workers"
    )
