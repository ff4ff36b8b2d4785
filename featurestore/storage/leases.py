"""Lease objects: the record of their holder, their age, and a thread that renews one.

An object's age is measured by the store alone: the time that it gave to the object against the time
of an object written now. The clocks of two machines are never compared.
"""

import contextlib
import json
import logging
import os
import platform
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from featurestore.errors import LakeError
from featurestore.storage.store import FileInfo, Store

FOLDER = "leases"
CLOCK = f"{FOLDER}/clock"
# Renewed four times in its life; its holder stops relying on it after three quarters of it, so
# that it has stopped for sure when another may take it over.
RENEW, BELIEVE = 0.25, 0.75
# Share of its life for which a listing that showed no other holder is believed. Another may begin
# when a quarter of it has passed in which the holder stopped believing; this is much less.
LISTED = 1 / 30
STAMP_S = 1.0  # stores give times in whole seconds

log = logging.getLogger(__name__)


def holder_record(purpose: str, lease_s: float) -> bytes:
    """Return the record of a lease's holder, as JSON.

    It never holds the whole command: an argument may be a secret.
    """
    command = [Path(sys.argv[0] or "python").name, *sys.argv[1:2]]
    record = {
        "what": purpose,
        "command": " ".join(word for word in command if word.replace("-", "").isidentifier()),
        "pid": os.getpid(),
        "host": platform.node(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "lease_s": lease_s,
        "mark": secrets.token_hex(8),
    }
    return json.dumps(record).encode()


def holder_text(record: dict[str, Any]) -> str:
    """Return the holder of a lease in words.

    >>> holder_text({"what": "ingest", "pid": 7, "host": "a", "since": "2026-01-01T00:00:00+00:00"})
    'ingest (pid 7 on a, since 2026-01-01T00:00:00+00:00)'
    """
    job = " ".join(str(record[name]) for name in ("what", "command") if record.get(name))
    if not job:
        return "another process"
    return f"{job} (pid {record.get('pid')} on {record.get('host')}, since {record.get('since')})"


def parsed(content: bytes) -> dict[str, Any]:
    """Return the record that `holder_record` wrote; an empty dict if it is damaged."""
    with contextlib.suppress(ValueError):
        record = json.loads(content)
        if isinstance(record, dict):
            return record
    return {}


def now_s() -> float:
    """Return this machine's monotonic clock in seconds, which runs on during suspension."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


@dataclass(frozen=True, kw_only=True)
class LeaseObjects:
    """The lease objects at one moment, and the store's time at that moment."""

    files: dict[str, FileInfo]
    time_s: float

    @classmethod
    def of(cls, store: Store) -> "LeaseObjects":
        """List the lease objects now."""
        store.write_bytes(CLOCK, b"")
        files = {file.path: file for file in store.walk(FOLDER)}
        return cls(files=files, time_s=files[CLOCK].modified)

    def live(self, store: Store, path: str) -> dict[str, Any] | None:
        """Return the holder of a lease as a record; None if it is free, expired or gone."""
        file = self.files.get(path)
        if file is None or not file.bytes:
            return None
        try:
            record = parsed(store.read_bytes(path))
        except FileNotFoundError:
            return None
        left = float(record.get("lease_s", 0)) + STAMP_S - (self.time_s - file.modified)
        return {**record, "left_s": left} if left > 0 else None


@dataclass(kw_only=True)
class Kept:
    """An object that a thread renews. `check` raises once it may be lost.

    Attributes:
        store: the lake's files.
        path: the object.
        body: the record of its holder.
        lease_s: seconds until the object expires without renewal.
    """

    store: Store
    path: str
    body: bytes
    lease_s: float
    renewed_s: float = field(default_factory=now_s)
    _listed_s: float = field(default=float("-inf"), init=False)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    @property
    def believed(self) -> bool:
        """Whether the last renewal is so recent that no other process can have the lease."""
        return now_s() - self.renewed_s < BELIEVE * self.lease_s

    def check(self) -> None:
        """Raise LakeError if the lease is lost, or may be."""
        begun_s = now_s()
        if begun_s - self._listed_s < LISTED * self.lease_s and self.believed:
            return
        if self.believed and not self.overtaken():
            self._listed_s = begun_s
        else:
            msg = (
                f"lost the lease {self.store.uri}/{self.path}: this process was paused or cut off "
                f"from the bucket for more than {BELIEVE * self.lease_s:.0f} s; run it again"
            )
            raise LakeError(msg)

    def overtaken(self) -> bool:
        """Whether another process holds the lease of this object."""
        raise NotImplementedError

    def _keep(self) -> None:
        while not self._stop.wait(RENEW * self.lease_s):
            if not self.renew():
                return

    def renew(self) -> bool:
        """Write the object again; return whether to continue to renew it."""
        begun_s = now_s()
        try:
            self.store.write_bytes(self.path, self.body)
        except Exception as error:  # noqa: BLE001 - whatever it was, the lease was not renewed
            log.warning("%s can't be renewed: %s", self.path, error)
        else:
            # From the start of the request: the store may have dated it any time after.
            self.renewed_s = begun_s
        return self.believed

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Renew the object in a thread inside the block; release it at the end in any case."""
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join(self.lease_s)
            try:
                self.let_go()
            except Exception as error:  # noqa: BLE001 - the work is done, or failed for a reason
                log.warning("%s is left to expire: %s", self.path, error)

    def let_go(self) -> None:
        """Release the object for others at once."""
        raise NotImplementedError
