"""A private directory for a local Ray, and how much memory its object store gets.

Ray makes its directory world-writable (mode 0777), puts AF_UNIX sockets in it, whose whole path
must stay under 108 bytes, and never deletes it. So: short names, inside a parent only we can enter,
removed at the end; leftovers of a killed process are removed at the next start.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import ClusterError

_PREFIX = "slray-"
_LOCK = "lock"
# 107 usable bytes of a socket's path, less "/session_<date>_<time>_<pid>" (43),
# "/sockets/plasma_store" (21), our "/slray-xxxxxxxx" (15) and "/r" (2).
_LONGEST_ROOT_BYTES = 107 - 43 - 21 - 15 - 2
_MIB = 2**20
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Yield a new directory for one Ray, short enough for its sockets; remove it at the end.

    Its parent has mode 0700 and holds a lock for as long as this process lives, by which a later
    start can tell what was left behind.

    Raises:
        ClusterError: no temporary directory with a short enough path can be written.
    """
    root = _short_root((Path(tempfile.gettempdir()), Path("/tmp")))
    _remove_leftovers(root)
    private = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
    fd = _take_lock(private)
    try:
        yield private / "r"
    finally:
        # Ray's agents may still be writing their last log lines while the tree goes away.
        shutil.rmtree(private, ignore_errors=True)
        os.close(fd)


def _short_root(candidates: tuple[Path, ...]) -> Path:
    for root in candidates:
        if len(os.fsencode(root)) <= _LONGEST_ROOT_BYTES and os.access(root, os.W_OK | os.X_OK):
            return root
    tried = ", ".join(str(root) for root in candidates)
    msg = (
        f"no place for Ray's sockets: tried {tried}; a writable directory whose path has at most "
        f"{_LONGEST_ROOT_BYTES} bytes is needed; set TMPDIR to one"
    )
    raise ClusterError(msg)


def _take_lock(private: Path) -> int:
    """Return the descriptor of a locked file; it is locked before it gets its name.

    So a sweep by another process never meets an unlocked file of a living process.
    """
    unnamed = private / f"{_LOCK}.new"
    fd = os.open(unnamed, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    unnamed.rename(private / _LOCK)
    return fd


def _remove_leftovers(root: Path) -> None:
    """Delete our directories of dead processes (the kernel drops a dead process's locks)."""
    for private in root.glob(f"{_PREFIX}*"):
        lock = private / _LOCK
        if private.is_symlink() or not lock.is_file() or lock.stat().st_uid != os.getuid():
            continue
        fd = os.open(lock, os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(private, ignore_errors=True)
        except BlockingIOError:
            pass  # its process lives
        finally:
            os.close(fd)


def object_store_bytes(*, ram_bytes: int, shm_free_bytes: int) -> int:
    """Return the memory for Ray's object store: an eighth of RAM, between 256 MiB and 2 GiB.

    Embeddings do not travel through the object store, so it stays small and leaves the memory to
    decoding and to the page cache. A `/dev/shm` with less room (a container's default is 64 MiB)
    lowers it, but not below 256 MiB: Ray then puts the store on disk and warns, which is slow but
    works.

    Example:
        >>> object_store_bytes(ram_bytes=8 * 2**30, shm_free_bytes=4 * 2**30) // 2**20
        1024
        >>> object_store_bytes(ram_bytes=8 * 2**30, shm_free_bytes=64 * 2**20) // 2**20
        256
    """
    eighth_bytes = min(ram_bytes // 8, 2048 * _MIB, int(shm_free_bytes * 0.9))
    return max(eighth_bytes, 256 * _MIB)


def ram_bytes() -> int:
    """Return the memory of the machine, or its container's (cgroup) limit if that is lower."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    texts = [path.read_text().strip() for path in _CGROUP_LIMITS if path.is_file()]
    return min([machine, *(int(text) for text in texts if text.isdigit())])


def shm_free_bytes() -> int:
    """Return the free bytes of `/dev/shm`, or of the temporary directory without it (macOS)."""
    shm = Path("/dev/shm")
    return shutil.disk_usage(shm if shm.is_dir() else tempfile.gettempdir()).free
