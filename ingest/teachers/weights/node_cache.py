"""Files of weights in a bucket, fetched to a folder of the node, once for all of its processes.

An entry is a folder with the file and its record, made under another name and renamed when it is
whole, so a kill leaves nothing that looks whole. Processes of a node wait for each other by a lock
that the kernel drops with its holder. The key of an entry has the file's size and ETag in it: a
file that was replaced in the bucket is another entry. A file is compared with the SHA-256 of its
record before a process first uses it. Entries that were not used for longest make room.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path, PurePosixPath

from featurestore.storage import protocol_of, shown
from ingest.errors import SlideError, TeacherError
from ingest.remote.remote_errors import BUCKETS, as_slide_errors
from ingest.remote.remote_files import FileState, RemoteFile, is_local, name_of, open_fs
from ingest.teachers.weights.file_hash import sha256_of

#: Variable with the folder of the cache.
CACHE = "SLIDELAKE_WEIGHTS_CACHE"
#: Variable with the most GB that it may hold.
CACHE_GB = "SLIDELAKE_WEIGHTS_CACHE_GB"

_GB = 10**9
_DEFAULT_GB = 100.0
_SPARE_BYTES = _GB  # left free on the disk: others write there too
_PART_BYTES = 32 << 20
_CONNECTIONS = 4
_LIST_S = 10.0
_RECENT_S = 600.0
_RECORD = "record.json"
_LEVELS = 2  # NAME.safetensors, and NAME/model.safetensors


def is_bucket_url(text: str) -> bool:
    """Whether a text is the URL of a file or folder in a bucket.

    >>> is_bucket_url("s3://lab/weights"), is_bucket_url("/shared/weights")
    (True, False)
    """
    return not is_local(text) and protocol_of(text) in BUCKETS


def bucket_names(url: str) -> list[str]:
    """Return the files below a folder of a bucket, two levels deep, relative to it and sorted.

    One request, which a process repeats after 10 s at the earliest.

    Raises:
        TeacherError: it is no folder of a bucket, or can't be listed.
    """
    return list(_bucket_names(url, int(time.monotonic() / _LIST_S)))


@lru_cache(maxsize=8)
def _bucket_names(url: str, moment: int) -> tuple[str, ...]:
    """Return the names, of which `moment` tells states apart."""
    if not is_bucket_url(url):
        allowed = ", ".join(f"{protocol}://" for protocol in sorted(BUCKETS))
        msg = f"weights at {shown(url)}: give a folder, or a URL that starts with {allowed}"
        raise TeacherError(msg)
    try:
        with as_slide_errors(url):
            fs, path = open_fs(url)
            root = path.rstrip("/")
            names = [str(name) for name in fs.find(root, maxdepth=_LEVELS)]
    except SlideError as error:
        msg = f"weights: {error}"
        raise TeacherError(msg) from error
    return tuple(sorted(name.removeprefix(root).lstrip("/") for name in names))


def cached_file(url: str) -> Path:
    """Return the path on this node of a file in a bucket, fetched if the node has none.

    Raises:
        TeacherError: the file can't be read, changes meanwhile, or there is no room for it.
    """
    try:
        remote = RemoteFile(url)
        state = remote.state()
        if state.size is None or state.is_folder or not state.marks:
            msg = f"weights: {remote.shown} is no file in a bucket"
            raise TeacherError(msg)
        root = _cache_root()
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        facts = json.dumps([remote.shown, state.size, state.marks])
        entry = root / hashlib.sha256(facts.encode()).hexdigest()[:24]
        path = entry / name_of(url)
        with _locked(entry, fcntl.LOCK_SH):  # processes of a node compare a file at the same time
            is_whole = _is_whole(path, state.size)
        if not is_whole:
            with _locked(entry, fcntl.LOCK_EX):
                if not _is_whole(path, state.size):
                    shutil.rmtree(entry, ignore_errors=True)
                    _make_room(root, state.size, entry)
                    _fetch(remote, state, entry)
        os.utime(entry)
        return path
    except SlideError as error:
        msg = f"weights: {error}"
        raise TeacherError(msg) from error
    except OSError as error:
        msg = f"weights of {shown(url)} can't be kept in {_cache_root()}: {error}; set {CACHE}"
        raise TeacherError(msg) from error


def _cache_root() -> Path:
    """Return the folder of the cache: $SLIDELAKE_WEIGHTS_CACHE, or a folder of the user's cache."""
    if named := os.environ.get(CACHE):
        return Path(named).expanduser()
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(user).expanduser() / "slidelake" / "weights"


def _most_bytes() -> float:
    text = os.environ.get(CACHE_GB, "")
    try:
        most = float(text) if text else _DEFAULT_GB
    except ValueError:
        most = 0.0
    if not 0 < most < float("inf"):
        msg = f"{CACHE_GB}: {text!r} is no number of GB above 0"
        raise TeacherError(msg)
    return most * _GB


@contextlib.contextmanager
def _locked(entry: Path, operation: int) -> Iterator[bool]:
    """Hold the lock of an entry; yield False without it where another process has it.

    Args:
        entry: folder of the entry, finished or not.
        operation: LOCK_SH or LOCK_EX, with LOCK_NB so as not to wait.
    """
    descriptor = os.open(entry.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            fcntl.flock(descriptor, operation)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


def _is_whole(path: Path, size: int) -> bool:
    """Whether an entry's file is there, and is what its record says."""
    try:
        record = json.loads((path.parent / _RECORD).read_text())
        return path.stat().st_size == size and sha256_of(path) == record["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _fetch(remote: RemoteFile, state: FileState, entry: Path) -> None:
    """Fetch a file into a new entry.

    Raises:
        SlideError: the file can't be read to its end.
        TeacherError: it changed while it was fetched.
    """
    unfinished = entry.with_suffix(".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    path = unfinished / PurePosixPath(name_of(remote.uri)).name
    size = state.size or 0
    with path.open("wb") as file:
        descriptor = file.fileno()

        def fetch_part(start: int) -> None:
            part = remote.read(start, min(start + _PART_BYTES, size))
            while part:
                written = os.pwrite(descriptor, part, start)
                part, start = part[written:], start + written

        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            list(pool.map(fetch_part, range(0, size, _PART_BYTES)))
        os.fsync(descriptor)
    if remote.state() != state or path.stat().st_size != size:
        msg = f"weights: {remote.shown} changed while it was fetched; run the command again"
        raise TeacherError(msg)
    record = {"url": remote.shown, "size": size, "sha256": sha256_of(path)}
    (unfinished / _RECORD).write_text(json.dumps(record))
    unfinished.rename(entry)


def _make_room(root: Path, size: int, entry: Path) -> None:
    """Remove entries, those not used for longest first, until a file of this size fits.

    An entry of the last ten minutes stays: a process may be about to load it.

    Raises:
        TeacherError: it does not fit then either.
    """
    for unfinished in root.glob("*.new"):  # of killed processes
        with _locked(unfinished, fcntl.LOCK_EX | fcntl.LOCK_NB) as is_ours:
            if is_ours and unfinished.stem != entry.name:
                shutil.rmtree(unfinished, ignore_errors=True)
    entries = [path for path in root.iterdir() if path.is_dir() and path.suffix != ".new"]
    entries.sort(key=lambda path: path.stat().st_mtime)
    held = {path: sum(file.stat().st_size for file in path.iterdir()) for path in entries}
    most = _most_bytes()
    old = [path for path in entries if path.stat().st_mtime < time.time() - _RECENT_S]
    for path in old:
        if sum(held.values()) + size <= most and _has_room(root, size):
            return
        with _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB) as is_ours:
            if is_ours:
                shutil.rmtree(path, ignore_errors=True)
                held.pop(path)
    if sum(held.values()) + size <= most and _has_room(root, size):
        return
    free = shutil.disk_usage(root).free
    msg = (
        f"no room for weights of {size / _GB:.1f} GB in {root}: it may hold {most / _GB:g} GB, and "
        f"{free / _GB:.1f} GB of its disk are free; set {CACHE} to a folder on a larger disk, or "
        f"{CACHE_GB} to more"
    )
    raise TeacherError(msg)


def _has_room(root: Path, size: int) -> bool:
    return shutil.disk_usage(root).free >= size + _SPARE_BYTES
