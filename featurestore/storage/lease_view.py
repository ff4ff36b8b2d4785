"""Who holds the locks and leases of a lake, looked at without a write.

On a disk the kernel tells whether a holder lives. In a bucket a lease is renewed every 15 s, and
its last renewal, by the store's clock, is compared with this machine's: only for people to look at,
never to take a lease.
"""

import contextlib
import fcntl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from featurestore.storage.leases import CLOCK, FOLDER, STAMP_S, parsed
from featurestore.storage.lock import COMMIT, LOCK_FILE
from featurestore.storage.store import Store

#: Clocks of machines differ by less, as a rule.
CLOCKS_S = 5.0


@dataclass(frozen=True, kw_only=True)
class LeaseView:
    """One lease, and who holds it.

    Attributes:
        kind: "writer" of new files, of which there may be many, "commit" or "vacuum".
        state: "held", or "left behind" by a job that was killed or cut off.
        purpose: what the holder does, such as `ingest of 12 slides`.
        command: program and command.
        host: machine of the holder.
        pid: its process there.
        since: time from which it holds the lease, UTC.
        last_sign_s: seconds since the lease was renewed, about; None on a disk.
    """

    kind: Literal["writer", "commit", "vacuum"]
    state: Literal["held", "left behind"]
    purpose: str
    command: str
    host: str
    pid: int | None
    since: str
    last_sign_s: float | None = None


def lease_views(store: Store) -> list[LeaseView]:
    """Return the leases of a lake, those that are held first; nothing is written."""
    views = _local_views(store) if store.is_local else _bucket_views(store)
    return sorted(views, key=lambda view: (view.state, view.kind, view.since))


def _view(kind: Any, record: dict[str, Any], **state: Any) -> LeaseView:  # noqa: ANN401 - fields
    pid = record.get("pid")
    return LeaseView(
        kind=kind,
        purpose=str(record.get("what", "")),
        command=str(record.get("command", "")),
        host=str(record.get("host", "")),
        pid=pid if isinstance(pid, int) else None,
        since=str(record.get("since", "")),
        **state,
    )


# ---------------------------------------------------------------------- local lakes


def _local_views(store: Store) -> list[LeaseView]:
    folder = Path(store.path(FOLDER))
    views = []
    for path in sorted(folder.glob("writer-*")):
        content, is_locked = _content_and_lock(path)
        if content is not None:
            state = "held" if is_locked else "left behind"
            views.append(_view("writer", parsed(content), state=state))
    for kind, path in ((COMMIT, Path(store.path(LOCK_FILE))), ("vacuum", folder / "gate")):
        content, is_locked = _content_and_lock(path)
        # Writers share the gate, which says nothing of a vacuum; alone it has its record.
        record = parsed(content or b"")
        if is_locked and (kind == COMMIT or not any(view.state == "held" for view in views)):
            views.append(_view(kind, record, state="held"))
    return views


def _content_and_lock(path: Path) -> tuple[bytes | None, bool]:
    """Return a lock file's content, None if it is gone, and whether a process holds the lock."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read(4096), True
        return file.read(4096), False
    return None, False


# ---------------------------------------------------------------------- buckets


def _bucket_views(store: Store) -> list[LeaseView]:
    now, newest, views = time.time(), {}, []
    for file in store.walk(FOLDER):
        name = file.path.rpartition("/")[2]
        kind = name.rpartition("-")[0]
        if file.path == CLOCK or kind not in ("writer", COMMIT, "vacuum"):
            continue
        if kind == "writer":
            newest[file.path] = (kind, file)
        elif kind not in newest or newest[kind][1].path < file.path:
            newest[kind] = (kind, file)  # of a numbered lease the highest number counts
    for kind, file in newest.values():
        with contextlib.suppress(FileNotFoundError):
            record = parsed(store.read_bytes(file.path)) if file.bytes else {}
            if not record:  # an empty object is a free lease
                continue
            age_s = max(0.0, now - file.modified)
            is_held = age_s < float(record.get("lease_s", 0)) + STAMP_S + CLOCKS_S
            state = "held" if is_held else "left behind"
            views.append(_view(kind, record, state=state, last_sign_s=round(age_s, 1)))
    return views
