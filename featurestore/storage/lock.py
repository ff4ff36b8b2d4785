"""The locks of a lake: one committer at a time, many writers of new files, or one vacuum.

Local lakes use flock, which the kernel drops when its process dies, kill -9 included. Buckets use
leases (`bucket_lock`), which a thread renews and others acquire once they expired.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, Self, TypeVar

from featurestore.errors import InUseError, LakeError
from featurestore.storage import bucket_lock
from featurestore.storage.bucket_lock import VACUUM, Taker
from featurestore.storage.full_disk import disk_full_error, is_disk_full, naming_full_disk
from featurestore.storage.leases import FOLDER, holder_record, holder_text, parsed
from featurestore.storage.store import Store
from featurestore.storage.user_files import bucket_errors_explained

LOCK_FILE = "commit.lock"
COMMIT = "commit"
# Long enough for a bucket that is busy for half a minute, short enough to wait out after a kill.
LEASE_S = 60.0
POLL_S = {True: 0.05, False: 1.0}  # local, bucket
PATIENCE_S = 15.0  # a longer wait is logged once

log = logging.getLogger(__name__)
T = TypeVar("T")


class Held(Protocol):
    """A lock or lease that is held."""

    def check(self) -> None:
        """Raise LakeError if the lock is lost, which a paused holder may not have noticed."""


@contextlib.contextmanager
def commit_lock(store: Store, *, wait_s: float = 600.0) -> Iterator[Held]:
    """Hold the right to change the lake's tables.

    In a bucket the holder calls `check()` right before each commit: a process that was suspended
    for longer than its lease may go on when another has taken over.

    Raises:
        InUseError: another committer held it for longer than `wait_s`.
        DiskFullError: the disk is full while the lock is held.
        BucketError: the bucket refused or failed what Lance asked for.
    """
    if store.is_local:
        lock = FileLock(Path(store.path(LOCK_FILE)), COMMIT, fcntl.LOCK_EX)
        waited = _waiting_lock(lock.take, lambda: lock.holder, store, wait_s)
        with waited as held, naming_full_disk(store.uri):
            yield held
        return
    taker = Taker(store, COMMIT, COMMIT, LEASE_S)
    lease = _wait(taker.take, lambda: taker.holder, store, wait_s)
    with lease.kept(), naming_full_disk(store.uri), bucket_errors_explained(store.uri):
        yield lease


@contextlib.contextmanager
def writer_lease(store: Store, job: str, *, wait_s: float = 600.0) -> Iterator[Held]:
    """Hold a lease for a job that writes files which no version names yet; many may hold one.

    Args:
        store: the lake's files.
        job: name of the job, shown to processes that wait for it.
        wait_s: seconds to wait for a vacuum to end.

    Raises:
        InUseError: a vacuum was at work for longer than `wait_s`.
        DiskFullError: the disk is full while the lock is held.
        BucketError: the bucket refused or failed what Lance asked for.
    """
    if store.is_local:
        gate = _writers_lock(store, job, fcntl.LOCK_SH)
        waited = _waiting_lock(gate.take, lambda: gate.holder, store, wait_s)
        with waited as held, _named_writer_file(store, job), naming_full_disk(store.uri):
            yield held
        return
    vacuum = "a vacuum"

    def light() -> bucket_lock.Beacon | None:
        nonlocal vacuum
        beacon, vacuum = bucket_lock.light(store, job, LEASE_S)
        return beacon

    beacon = _wait(light, lambda: vacuum, store, wait_s)
    with beacon.kept(), naming_full_disk(store.uri), _lance_errors_explained(store.uri):
        yield beacon


@contextlib.contextmanager
def _lance_errors_explained(uri: str) -> Iterator[None]:
    """Turn Lance's errors of a bucket into LakeErrors; a job also has errors of other places."""
    try:
        yield
    except OSError as error:
        if "LanceError" not in str(error):
            raise
        with bucket_errors_explained(uri):
            raise


def live_writers(store: Store) -> list[str]:
    """List the jobs that hold a `writer_lease` now: name, pid, host and since when."""
    if not store.is_local:
        return bucket_lock.writers(store)
    jobs = [_job_of(path) for path in Path(store.path(FOLDER)).glob("writer-*")]
    return sorted(job for job in jobs if job is not None)


@contextlib.contextmanager
def no_writers(store: Store) -> Iterator[Held]:
    """Hold the right to delete files that no version names; no job starts to write meanwhile.

    Raises:
        InUseError: a job is writing, or vacuuming; it is named.
    """
    if store.is_local:
        gate = _writers_lock(store, VACUUM, fcntl.LOCK_EX)
        if gate.take() is None:
            raise _in_use(store, "; ".join(live_writers(store)) or gate.holder)
        with contextlib.closing(gate):
            yield gate
        return
    taker = Taker(store, VACUUM, VACUUM, LEASE_S)
    lease = taker.take()
    if lease is None:
        raise _in_use(store, taker.holder)
    with lease.kept(), bucket_errors_explained(store.uri):
        if jobs := bucket_lock.writers(store):
            raise _in_use(store, "; ".join(jobs))
        yield lease


def _in_use(store: Store, holder: str) -> InUseError:
    return InUseError(f"{store.uri} is in use by {holder}; wait for it or stop it")


def _wait(take: Callable[[], T | None], holder: Callable[[], str], store: Store, s: float) -> T:
    begun, is_logged = time.monotonic(), False
    while (handle := take()) is None:
        waited = time.monotonic() - begun
        if waited > s:
            raise _in_use(store, holder())
        if waited > PATIENCE_S and not is_logged:
            log.warning("%s is in use by %s: waiting", store.uri, holder())
            is_logged = True
        time.sleep(min(POLL_S[store.is_local], max(s - waited, 0.01)))
    return handle


@contextlib.contextmanager
def _waiting_lock(
    take: Callable[[], "FileLock | None"], holder: Callable[[], str], store: Store, wait_s: float
) -> Iterator["FileLock"]:
    with contextlib.closing(_wait(take, holder, store, wait_s)) as lock:
        yield lock


# ---------------------------------------------------------------------- local lakes


class FileLock:
    """A lock on a file that names its holder. Closing the file releases the lock.

    Args:
        path: the file; its folder must be there.
        purpose: purpose of the lock.
        mode: `fcntl.LOCK_EX` for one holder, `fcntl.LOCK_SH` for many.
    """

    def __init__(self, path: Path, purpose: str, mode: int) -> None:
        self.path, self.purpose, self.mode = path, purpose, mode
        self.holder = "another process"
        self._fd: int | None = None

    def take(self) -> Self | None:
        """Return the acquired lock, or None while another process has it (named by `holder`).

        Raises:
            LakeError: the file system has no locks, or the file can't be written.
        """
        try:
            taken = self._try_lock()
        except OSError as error:
            self.close()
            if full := disk_full_error(error, str(self.path)):
                raise full from error
            msg = (
                f"{self.path} can't be locked ({error.strerror}); a lake that is written to lies "
                "in a writable folder, on a file system with flock"
            )
            raise LakeError(msg) from error
        except BaseException:
            self.close()
            raise
        if not taken:
            self.close()
        return self if taken else None

    def _try_lock(self) -> bool:
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._fd, self.mode | fcntl.LOCK_NB)
        except BlockingIOError:
            self.holder = holder_text(parsed(os.pread(self._fd, 4096, 0)))
            return False
        if not self._is_there():  # deleted between the opening and the locking
            return False
        if self.mode == fcntl.LOCK_EX:
            self._record_holder(self._fd)
        return True

    def _record_holder(self, fd: int) -> None:
        """Record the holder in the file; on a full disk the holder is `another process`."""
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, holder_record(self.purpose, 0), 0)
        except OSError as error:
            if not is_disk_full(error):  # a full disk must not keep a vacuum from making room
                raise

    def _is_there(self) -> bool:
        try:
            return self._fd is not None and os.path.samestat(os.fstat(self._fd), self.path.stat())
        except FileNotFoundError:
            return False

    def check(self) -> None:
        """Raise LakeError if the file was deleted or replaced, so that another could lock it."""
        if not self._is_there():
            msg = f"lost the lock {self.path}: the file was deleted; run again"
            raise LakeError(msg)

    def close(self) -> None:
        """Release the lock."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _writers_lock(store: Store, purpose: str, mode: int) -> FileLock:
    """Return the lock that writers share and a vacuum has alone."""
    folder = Path(store.path(FOLDER))
    with contextlib.suppress(OSError):  # taking the lock reports what is wrong with the folder
        folder.mkdir(exist_ok=True)
    return FileLock(folder / "gate", purpose, mode)


@contextlib.contextmanager
def _named_writer_file(store: Store, job: str) -> Iterator[None]:
    """Keep a file that names a writing job; it is locked before it can be seen."""
    name = f"writer-{secrets.token_hex(8)}"
    hidden, path = (Path(store.path(f"{FOLDER}/{dot}{name}")) for dot in (".", ""))
    lock = FileLock(hidden, job, fcntl.LOCK_EX)
    with contextlib.closing(lock):
        try:
            lock.take()
            hidden.rename(path)
            yield
        finally:
            for file in (hidden, path):
                file.unlink(missing_ok=True)


def _job_of(path: Path) -> str | None:
    """Return the job of a writer's file; None, and the file is removed, if its process died."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return holder_text(parsed(file.read()))
        path.unlink(missing_ok=True)
        return None
