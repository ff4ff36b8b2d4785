"""Locks in a bucket, where no kernel drops the lock of a dead process.

A lock is a row of numbered lease objects, each created only if absent; the object with the highest
number counts, and an empty object is free. So two can never acquire the same expired lease, on any
store that creates an object conditionally and lists what was written (S3, GCS, Azure, MinIO, Ceph).
"""

import secrets

from featurestore.errors import LakeError
from featurestore.storage.leases import (
    FOLDER,
    Kept,
    LeaseObjects,
    holder_record,
    holder_text,
    now_s,
)
from featurestore.storage.store import FileInfo, Store

WRITER = f"{FOLDER}/writer-"
VACUUM = "vacuum"


def numbered(store: Store, name: str) -> list[str]:
    """Return the objects of a lease; the last object counts."""
    return [f"{FOLDER}/{n}" for n in store.names(FOLDER) if n.startswith(f"{name}-")]


def newest(store: Store, name: str) -> str | None:
    """Return the object of a lease that counts, or None if it was never taken."""
    return next(iter(reversed(numbered(store, name))), None)


class Lease(Kept):
    """A lease with one holder at a time."""

    @property
    def name(self) -> str:
        """Return the name of the lease."""
        return self.path.rpartition("/")[2].rpartition("-")[0]

    def overtaken(self) -> bool:
        """Whether there is a higher number."""
        return newest(self.store, self.name) != self.path

    def let_go(self) -> None:
        """Empty the object and leave it there: its number must never be used twice."""
        if self.believed:
            self.store.write_bytes(self.path, b"")


class Taker:
    """One process's attempts to acquire a lease; each `take` costs one listing.

    Args:
        store: the lake's files.
        name: name of the lease.
        purpose: purpose of the lease, shown to processes that wait for it.
        lease_s: seconds until the lease expires without renewal.
    """

    def __init__(self, store: Store, name: str, purpose: str, lease_s: float) -> None:
        self.store, self.name, self.purpose, self.lease_s = store, name, purpose, lease_s
        self.holder = "another process"
        self._last_seen: tuple[str, float] | None = None
        self._look_again_s = 0.0

    def take(self) -> Lease | None:
        """Return the lease, or None while another process has it (`holder` names that process)."""
        files = {f.path: f for f in self.store.walk(FOLDER)}
        last = max((path for path in files if self._mine(path)), default=None)
        if last is not None and files[last].bytes and self._held(files[last]):
            return None
        number = 1 + (int(last.rpartition("-")[2]) if last else 0)
        return self._take(f"{FOLDER}/{self.name}-{number:09d}")

    def _mine(self, path: str) -> bool:
        return path.startswith(f"{FOLDER}/{self.name}-")

    def _held(self, file: FileInfo) -> bool:
        state = (file.path, file.modified)
        if state == self._last_seen and now_s() < self._look_again_s:
            return True
        record = LeaseObjects.of(self.store).live(self.store, file.path)
        if record is None:
            return False
        self.holder, self._last_seen = holder_text(record), state
        self._look_again_s = now_s() + record["left_s"]
        return True

    def _take(self, path: str) -> Lease | None:
        body, begun_s = holder_record(self.purpose, self.lease_s), now_s()
        if not self.store.create(path, body):
            return None
        lease = Lease(
            store=self.store, path=path, body=body, lease_s=self.lease_s, renewed_s=begun_s
        )
        # A taker that was paused may find its number free again, swept up below; it is not the
        # highest then, for the highest is never deleted.
        objects = numbered(self.store, self.name)
        if objects[-1:] != [path]:
            self.store.remove([path])
            return None
        self.store.remove(objects[:-1])
        return lease


class Beacon(Kept):
    """The mark of a job that writes to the lake; there may be many.

    A job of days may be cut off for longer than its beacon lives. Nothing is lost by that unless a
    vacuum began meanwhile: it did not see the beacon, and may have swept the job's files away.
    """

    vacuum: str | None = None
    gap = False

    def renew(self) -> bool:
        """Write the beacon again, also after a gap."""
        self.gap |= not self.believed
        super().renew()
        return True

    def check(self) -> None:
        """Raise LakeError if a vacuum may have removed files of this job."""
        self.gap |= not self.believed
        if self.gap and self.overtaken():
            msg = (
                f"{self.store.uri} was vacuumed while this job was paused or cut off from the "
                "bucket; files it wrote may be gone: run it again"
            )
            raise LakeError(msg)

    def overtaken(self) -> bool:
        """Whether a vacuum began after the beacon was created."""
        return newest(self.store, VACUUM) != self.vacuum

    def let_go(self) -> None:
        """Remove the beacon."""
        self.store.remove([self.path])


def light(store: Store, job: str, lease_s: float) -> tuple[Beacon | None, str]:
    """Return (new beacon, ""), or (None, holder of the vacuum lease); nothing renews it yet."""
    body, path = holder_record(job, lease_s), f"{WRITER}{secrets.token_hex(8)}"
    beacon = Beacon(store=store, path=path, body=body, lease_s=lease_s)
    # First written, then looked: a vacuum does it the other way round, so one sees the other.
    store.write_bytes(path, body)
    beacon.vacuum = newest(store, VACUUM)
    held = LeaseObjects.of(store).live(store, beacon.vacuum) if beacon.vacuum else None
    if held is None:
        return beacon, ""
    store.remove([path])
    return None, holder_text(held)


def writers(store: Store) -> list[str]:
    """Return the jobs that are writing now; remove the beacons of dead jobs."""
    objects = LeaseObjects.of(store)
    records = {path: objects.live(store, path) for path in objects.files if path.startswith(WRITER)}
    store.remove([path for path, record in records.items() if record is None])
    return sorted(holder_text(record) for record in records.values() if record is not None)
