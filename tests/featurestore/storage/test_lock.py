"""Locks and leases in a folder and in a bucket: one holder at a time, and none outlives it."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from featurestore import BucketError, LakeError, Store
from featurestore.storage import bucket_lock, leases, lock
from featurestore.storage.bucket_lock import Lease, Taker
from tests.worlds.s3 import SECRET, Bucket, Faults

HOLD = """
import sys
from featurestore import LakeError, Store
from featurestore.storage import lock
lock.LEASE_S = float(sys.argv[2])
store = Store(sys.argv[1])
with lock.commit_lock(store) as held, lock.writer_lease(store, "cutting slides") as writing:
    print("held", flush=True)
    for line in sys.stdin:
        for one in (held, writing):
            try:
                one.check()
                print("mine", flush=True)
            except LakeError as error:
                print(error, flush=True)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of two seconds, looked at ten times a second."""
    monkeypatch.setattr(lock, "LEASE_S", 2.0)
    monkeypatch.setattr(lock, "POLL_S", {True: 0.02, False: 0.1})


@contextlib.contextmanager
def another_process(store: Store) -> Iterator["subprocess.Popen[str]"]:
    """Yield a process that holds the commit lock and a writer's lease until its stdin is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, store.uri, str(lock.LEASE_S)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


# ---------------------------------------------------------------------- one at a time


def test_of_many_at_once_each_has_the_lock_alone(any_store: Store) -> None:
    any_store.write_bytes("counter", b"0")

    def count(_: int) -> None:
        with lock.commit_lock(any_store) as held:
            count_before = int(any_store.read_bytes("counter"))
            time.sleep(0.01)
            held.check()
            any_store.write_bytes("counter", str(count_before + 1).encode())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(8)))
    assert any_store.read_bytes("counter") == b"8"


def test_who_waits_too_long_is_told_who_holds_it(any_store: Store) -> None:
    with (
        lock.commit_lock(any_store),
        pytest.raises(LakeError, match=rf"in use by commit.* \(pid {os.getpid()} on .*, since 20"),
        lock.commit_lock(any_store, wait_s=0.1),
    ):
        pass
    with lock.commit_lock(any_store, wait_s=0.1):
        pass


def test_only_a_long_wait_is_said_and_once(
    any_store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="featurestore")
    for patience_s, says in ((60.0, 0), (0.2, 1)):
        monkeypatch.setattr(lock, "PATIENCE_S", patience_s)
        caplog.clear()
        with (
            lock.commit_lock(any_store),
            contextlib.suppress(LakeError),
            lock.commit_lock(any_store, wait_s=0.8),
        ):
            pass
        assert [r.message.count("waiting") for r in caplog.records] == [1] * says


def test_error_inside_frees_the_lock_and_stays_the_error(any_store: Store) -> None:
    with pytest.raises(ZeroDivisionError), lock.commit_lock(any_store):
        _ = 1 / 0
    with lock.commit_lock(any_store, wait_s=0.1):
        pass


def test_errors_of_lance_inside_are_those_of_the_bucket(bucket: Bucket) -> None:
    """As a listing ends whose answer is cut more often than Lance asks again."""
    said = "LanceError(IO): Generic S3 error: HTTP error: request or response body error, /x/y.rs:1"
    for take in (lock.commit_lock, lock.no_writers, lambda s: lock.writer_lease(s, "ingest")):
        store = Store(bucket.uri)
        with pytest.raises(BucketError, match="can't be reached") as caught, take(store):
            raise OSError(said)
        assert ".rs" not in str(caught.value)
        with lock.commit_lock(store, wait_s=0.1):
            pass
    for other in (ConnectionError("of a slide's server"), FileNotFoundError("of a user")):
        with pytest.raises(type(other), match="of a"), lock.writer_lease(store, "ingest"):
            raise other


def test_what_a_lease_says_holds_no_argument(
    any_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/slidelake", "ingest", f"s3://x/?signature={SECRET}"])
    with lock.commit_lock(any_store), lock.writer_lease(any_store, "ingest"):
        record = b"".join(any_store.read_bytes(file.path) for file in any_store.walk())
    assert b'"command": "slidelake ingest"' in record
    assert SECRET.encode() not in record


def test_place_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    for take in (lock.commit_lock, lock.no_writers, lambda s: lock.writer_lease(s, "x")):
        with (
            pytest.raises(LakeError, match=r"nowhere.* can't be locked"),
            take(Store(tmp_path / "nowhere")),
        ):
            pass


def test_deleted_lock_file_is_noticed(tmp_path: Path) -> None:
    with lock.commit_lock(Store(tmp_path)) as held:
        held.check()
        (tmp_path / lock.LOCK_FILE).unlink()
        with pytest.raises(LakeError, match="lost the lock"):
            held.check()
        with lock.commit_lock(Store(tmp_path), wait_s=0.1) as other:
            other.check()
            with pytest.raises(LakeError, match="lost the lock"):
                held.check()


# ---------------------------------------------------------------------- holders that die


@pytest.mark.slow
def test_killed_holder_is_followed(any_store: Store) -> None:
    with another_process(any_store) as process:
        (who,) = lock.live_writers(any_store)
        assert who.startswith("cutting slides")
        assert f"(pid {process.pid} on" in who
        with pytest.raises(LakeError, match=f"pid {process.pid}"), lock.no_writers(any_store):
            pass
        with (
            pytest.raises(LakeError, match=f"pid {process.pid}"),
            lock.commit_lock(any_store, wait_s=0.3),
        ):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed = time.monotonic()
        with lock.commit_lock(any_store, wait_s=5 * lock.LEASE_S) as held:
            waited_s = time.monotonic() - killed
            held.check()
    # At once where the kernel knows; in a bucket once the lease and a whole second have passed.
    assert waited_s < (0.5 if any_store.is_local else lock.LEASE_S + 2.5)
    assert lock.live_writers(any_store) == []
    assert not [file.path for file in any_store.walk() if "writer-" in file.path]
    with lock.no_writers(any_store):
        pass


@pytest.mark.slow
def test_suspended_holder_is_overtaken_and_knows(bucket: Bucket) -> None:
    store = Store(bucket.uri)
    with another_process(store) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.send_signal(signal.SIGSTOP)
        with lock.commit_lock(store, wait_s=5 * lock.LEASE_S), lock.no_writers(store):
            pass
        process.send_signal(signal.SIGCONT)
        print("ask", file=process.stdin, flush=True)
        assert "lost the lease" in process.stdout.readline()
        assert "was vacuumed while this job was paused" in process.stdout.readline()


# ---------------------------------------------------------------------- leases in a bucket


def _expired(store: Store) -> None:
    """Leave a lease behind as a killed holder does; it has expired when this returns."""
    assert Taker(store, "commit", "commit", 0.1).take() is not None
    time.sleep(0.1 + leases.STAMP_S + 1.0)


def test_of_many_takers_of_an_expired_lease_one_wins(bucket: Bucket) -> None:
    store = Store(bucket.uri)
    _expired(store)
    ready = threading.Barrier(6)

    def take(_: int) -> Lease | None:
        taker = Taker(Store(bucket.uri), "commit", "commit", lock.LEASE_S)
        ready.wait()
        return taker.take()

    with ThreadPoolExecutor(6) as pool:
        won = [lease for lease in pool.map(take, range(6)) if lease is not None]
    assert len(won) == 1
    won[0].check()
    assert bucket_lock.numbered(store, "commit") == [won[0].path]


def test_taker_that_slept_through_two_holders_does_not_win(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(bucket.uri)
    _expired(store)
    slow = Taker(store, "commit", "commit", 2.0)
    then: list[Lease | None] = []
    create = slow._create_lease

    def late(path: str) -> Lease | None:
        # Between what it saw and what it does, another takes the number and frees it, and a third
        # has the next one and sweeps the number away: it can be made again.
        with lock.commit_lock(store):
            pass
        then.append(Taker(store, "commit", "commit", 2.0).take())
        assert not store.exists(path)
        return create(path)

    monkeypatch.setattr(slow, "_create_lease", late)
    assert slow.take() is None
    assert then[0] is not None
    then[0].check()
    assert bucket_lock.numbered(store, "commit") == [then[0].path]


@pytest.mark.slow
def test_renewed_lease_is_not_taken_over(bucket: Bucket) -> None:
    store = Store(bucket.uri)
    with lock.commit_lock(store) as held, lock.writer_lease(store, "cut") as writing:
        with pytest.raises(LakeError, match="in use by commit"), lock.commit_lock(store, wait_s=5):
            pass
        assert len(lock.live_writers(store)) == 1
        held.check()
        writing.check()


@pytest.mark.slow
def test_holder_that_cannot_renew_stops_believing_before_others_take_over(
    faulty: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(faulty.uri)
    with lock.commit_lock(store) as held:
        held.check()
        faulty.faults.set(denied="^PUT .*commit-000000001$")
        begun = time.monotonic()
        while _mine(held):
            time.sleep(0.05)
        assert time.monotonic() - begun < lock.LEASE_S
        assert Taker(store, "commit", "commit", 2.0).take() is None
        with lock.commit_lock(store, wait_s=10.0) as other:
            other.check()
            assert not _mine(held)
    assert "can't be renewed" in caplog.text
    assert SECRET not in caplog.text


def _mine(held: lock.Held) -> bool:
    try:
        held.check()
    except LakeError:
        return False
    return True


@pytest.mark.slow
def test_failing_unlock_does_not_hide_the_error_inside(
    faulty: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(faulty.uri)

    def fail(faults: Faults) -> None:
        faults.set(denied=".")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), lock.commit_lock(store):
        fail(faulty.faults)
    assert "left to expire: " in caplog.text
    faulty.faults.set(denied="")
    with lock.commit_lock(store, wait_s=10.0):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["slow_down", "internal", "refused", "lost", "cut"])
def test_lease_outlives_failing_requests(faulty: Bucket, kind: str) -> None:
    store = Store(faulty.uri)
    with faulty.faults.at(**{kind: 0.25}):
        for _ in range(2):
            with lock.commit_lock(store), lock.writer_lease(store, "cut"):
                assert len(lock.live_writers(store)) == 1
        with lock.no_writers(store):
            pass
    assert faulty.faults.done[kind] > 0


# ---------------------------------------------------------------------- writers and vacuums


def test_many_may_write_while_nobody_vacuums(any_store: Store) -> None:
    with lock.writer_lease(any_store, "one"), lock.writer_lease(any_store, "two") as two:
        two.check()
        assert [who.partition(" ")[0] for who in lock.live_writers(any_store)] == ["one", "two"]
        with pytest.raises(LakeError, match=r"in use by one .*; two "), lock.no_writers(any_store):
            pass
        with lock.commit_lock(any_store, wait_s=0.1):
            pass
    assert lock.live_writers(any_store) == []


def withdrawn(store: Store) -> bool:
    time.sleep(0.05)
    return lock.live_writers(store) == []


def test_writers_wait_for_a_vacuum_and_vacuums_for_none(any_store: Store) -> None:
    started = threading.Event()

    def write() -> None:
        with lock.writer_lease(any_store, "cut", wait_s=20.0):
            started.set()

    with ThreadPoolExecutor(1) as pool:
        with lock.no_writers(any_store) as held:
            with pytest.raises(LakeError, match="in use by vacuum"), lock.no_writers(any_store):
                pass
            with (
                pytest.raises(LakeError, match="in use by vacuum"),
                lock.writer_lease(any_store, "cut", wait_s=0.2),
            ):
                pass
            done = pool.submit(write)
            assert not started.wait(0.5)
            # the writer shows itself, looks for a vacuum and withdraws, again and again
            assert any(withdrawn(any_store) for _ in range(100))
            assert not started.is_set()
            held.check()
        done.result(timeout=20)
    assert started.is_set()


def test_writer_that_was_cut_off_goes_on_unless_it_was_vacuumed(bucket: Bucket) -> None:
    store = Store(bucket.uri)
    beacon, _ = bucket_lock.light(store, "cut", 2.0)
    assert beacon is not None
    beacon.renewed_s -= 100.0
    beacon.check()
    assert beacon.renew()
    beacon.check()
    store.remove([beacon.path])
    with lock.no_writers(store):
        pass
    with pytest.raises(LakeError, match="was vacuumed while this job"):
        beacon.check()
