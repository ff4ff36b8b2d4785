"""One committer at a time.

Local lakes use flock, which the kernel drops when its process dies, kill -9 included. Buckets use
a lease object made only if it is absent, kept alive by a thread, and taken over once it expired.
"""

import contextlib
import fcntl
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from featurestore.errors import LakeError
from featurestore.storage import Store

LEASE = "commit.lock"
LEASE_S = 60.0


@contextlib.contextmanager
def commit_lock(store: Store, *, wait_s: float = 600.0) -> Iterator[None]:
    """Hold the right to change the lake's tables.

    Raises:
        LakeError: another committer held it for longer than `wait_s`.
    """
    with _file_lock(store, wait_s) if store.is_local else _lease(store, wait_s):
        yield


@contextlib.contextmanager
def _file_lock(store: Store, wait_s: float) -> Iterator[None]:
    deadline = time.monotonic() + wait_s
    with Path(store.path(LEASE)).open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _give_up_after(deadline, store, "another process")
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def _lease(store: Store, wait_s: float) -> Iterator[None]:
    owner, deadline = uuid.uuid4().hex, time.monotonic() + wait_s
    while not _take(store, owner):
        _give_up_after(deadline, store, f"the lease {store.url(LEASE)}")
    stop = threading.Event()
    keeper = threading.Thread(target=_keep, args=(store, owner, stop), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        stop.set()
        keeper.join()
        store.fs.rm_file(store.path(LEASE))


def _give_up_after(deadline: float, store: Store, holder: str) -> None:
    if time.monotonic() > deadline:
        msg = f"{store.uri} is being changed by {holder}; wait for it or stop it"
        raise LakeError(msg)
    time.sleep(0.05 if store.is_local else 1.0)


def _body(owner: str) -> bytes:
    return json.dumps({"owner": owner, "pid": os.getpid(), "until": time.time() + LEASE_S}).encode()


def _take(store: Store, owner: str) -> bool:
    with contextlib.suppress(FileNotFoundError, ValueError):
        store.fs.invalidate_cache()
        if json.loads(store.read_bytes(LEASE))["until"] > time.time():
            return False
        store.fs.rm_file(store.path(LEASE))
    try:
        store.fs.pipe_file(store.path(LEASE), _body(owner), mode="create")
    except FileExistsError:
        return False
    return True


def _keep(store: Store, owner: str, stop: threading.Event) -> None:
    while not stop.wait(LEASE_S / 4):
        store.fs.pipe_file(store.path(LEASE), _body(owner))
