"""A lake in a bucket is the lake it would be in a folder, whatever the bucket does meanwhile."""

import contextlib
import logging
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from featurestore import (
    BucketError,
    Lake,
    LakeConfig,
    LakeError,
    LakeMissingError,
    ShardReader,
    Store,
    create_lake,
    fit_stats,
    open_lake,
    query,
    read_stats,
    repair,
    vacuum,
    verify,
)
from featurestore.keep.lance_copy import copy_lake
from featurestore.keep.lance_restore import restore
from featurestore.keep.repairing import plan_repair
from featurestore.keep.verify.damage import TABLE
from featurestore.keep.verify.file_checks import FILE_CHECKS
from featurestore.keep.verify.lance_checking import check_lake, lake_to_mend
from featurestore.roots.lance_roots import manifest_path
from featurestore.roots.roots_file import ROOTS_FILE
from featurestore.storage import lock
from featurestore.storage.bucket_errors import causes
from featurestore.tables.lance_tables import open_table, table_versions
from featurestore.tables.schema import CATALOG, features_table
from ingest.errors import SlideError
from ingest.select.sources import fingerprint, resolve
from tests.conftest import REAL_SLIDE, ROOT
from tests.worlds.s3 import SECRET, Bucket, Request, new_bucket
from tests.worlds.small_lake import add_slides, add_teacher, contents, cut
from tests.worlds.training_lake import DIMS
from tests.worlds.training_lake import make as make_training_lake

CONFIG = LakeConfig(mpps=(0.5, 2.0))
T = TypeVar("T")
SLIDES = {"a": 5, "b": 3, "c": 4}
WORKER = f"""
import sys
from featurestore import create_lake, LakeConfig
from featurestore.storage import lock
from tests.worlds.small_lake import add_slides, add_teacher
lock.LEASE_S, lock.POLL_S[False] = 2.0, 0.2
print("started", flush=True)
add_teacher(add_slides(create_lake(sys.argv[1], {CONFIG}), {SLIDES}), "t")
"""


def begun(uri: str) -> Lake:
    """Return a lake of three slides and a teacher, as `WORKER` makes it; what is there stays."""
    return add_teacher(add_slides(create_lake(uri, CONFIG), SLIDES), "t")


def filled(uri: str) -> Lake:
    """Return the lake of `begun` with one slide scanned again, features and statistics."""
    lake = add_slides(begun(uri), {"b": 7}, mark="again")
    lake = add_teacher(lake, "t")
    fit_stats(lake, "t", mpp=0.5, slide_ids=["a", "c"])
    return lake


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set leases of two seconds that are polled five times a second."""
    monkeypatch.setattr(lock, "LEASE_S", 2.0)
    monkeypatch.setattr(lock, "POLL_S", {True: 0.05, False: 0.2})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Return the lake of `filled` in a folder. Not to be changed."""
    return filled(str(tmp_path_factory.mktemp("local") / "lake"))


@pytest.fixture(scope="module")
def shared(s3_urls: tuple[str, str]) -> Iterator[Bucket]:
    """Yield a bucket with the lake of `filled`. Not to be changed."""
    with pytest.MonkeyPatch.context() as environment:
        bucket = new_bucket(s3_urls, environment)
        filled(bucket.uri)
        yield bucket


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Return the contents of the lake of `begun`."""
    return contents(begun(str(tmp_path_factory.mktemp("whole") / "lake")))


# ---------------------------------------------------------------------- the same as in a folder


def test_lake_in_a_bucket_is_the_lake_in_a_folder(shared: Bucket, folder: Lake) -> None:
    bucket_lake = open_lake(shared.uri)
    assert contents(bucket_lake) == contents(folder)
    assert {**bucket_lake.info(), "lake": ""} == {**folder.info(), "lake": ""}
    for slide_id in "abc":
        one, other = (lake.bag(slide_id, "t", mpp=2.0) for lake in (bucket_lake, folder))
        np.testing.assert_array_equal(one.features, other.features)
        np.testing.assert_array_equal(one.tile_id, other.tile_id)
    assert verify(bucket_lake).ok


def test_questions_to_a_bucket_are_answered_as_to_a_folder(shared: Bucket, folder: Lake) -> None:
    bucket_lake = open_lake(shared.uri)
    sql = "SELECT slide_id, COUNT(*) AS n FROM tiles_mpp2_0 GROUP BY slide_id ORDER BY slide_id"
    assert_frame_equal(query(bucket_lake, sql), query(folder, sql))
    answers = []
    for lake in (bucket_lake, folder):
        frame = lake.features("t", mpp=0.5)
        predicate = pl.col("slide_id") == "b"
        answers.append(
            [
                frame.sort("tile_id"),
                frame.filter(predicate).select("x", "t").sort("x"),
                frame.filter(pl.col("x") > 256).select("tile_id").sort("tile_id").head(3),
            ]
        )
    for one, other in zip(*answers, strict=True):
        assert_frame_equal(one.collect(), other.collect())


def test_files_in_a_bucket_are_byte_for_byte_those_of_a_folder(
    shared: Bucket, folder: Lake
) -> None:
    prefix = shared.uri.partition(f"{shared.name}/")[2]
    objects = {key.removeprefix(f"{prefix}/"): content for key, content in shared.objects().items()}
    local = {file.path: folder.read_bytes(file.path) for file in folder.store.walk()}
    ours = [path for path in local if path.startswith(("tiles/", "stats/", "lake.json"))]
    assert len(ours) > 10
    assert {path: objects[path] for path in ours} == {path: local[path] for path in ours}
    shard = folder.tiles_of(mpp=0.5).row(0, named=True)["shard"]
    store = open_lake(shared.uri).store
    with ShardReader(store, shard) as one, ShardReader(folder.store, shard) as other:
        assert dict(one) == dict(other)
        assert one.jpegs(one.tile_id[1:]) == other.jpegs(other.tile_id[1:])


def test_old_versions_and_statistics_are_read_from_a_bucket(shared: Bucket, folder: Lake) -> None:
    newest = open_lake(shared.uri)
    assert newest.version == folder.version
    for version in (3, folder.version - 2):
        old, same = (open_lake(lake.uri, version=version) for lake in (newest, folder))
        assert contents(old) == contents(same) != contents(folder)
    for lake in (newest, folder):
        moments = read_stats(lake, "t", mpp=0.5, slide_ids=["a", "c"])
        assert moments is not None
        assert moments.n == 9
    with pytest.raises(LakeError, match="no version 99"):
        open_lake(shared.uri, version=99)


def test_missing_lakes_and_buckets_are_told_apart(shared: Bucket) -> None:
    with pytest.raises(LakeMissingError, match="does not exist"):
        open_lake(f"s3://{shared.name}/nowhere")
    with pytest.raises(LakeMissingError, match="is not a lake"):
        open_lake(shared.uri.rpartition("/")[0])
    for make in (open_lake, lambda uri: create_lake(uri, CONFIG)):
        with pytest.raises(LakeMissingError, match="there is no bucket 'never-made'"):
            make("s3://never-made/lake")


@pytest.mark.slow
def test_vacuum_of_a_bucket_takes_what_no_version_names(bucket: Bucket) -> None:
    lake = begun(bucket.uri)
    before = contents(lake)
    stray = "tiles/mpp0.5/999999-killed.tar"
    lake.store.write_bytes(stray, b"1")
    with (
        lock.writer_lease(lake.store, "ingest"),
        pytest.raises(LakeError, match="in use by ingest"),
    ):
        vacuum(lake)
    assert vacuum(lake, keep=1).files > 0
    assert not lake.store.exists(stray)
    assert contents(lake.refreshed()) == before
    assert verify(lake.refreshed()).ok


# ---------------------------------------------------------------------- requests


def requests_of(bucket: Bucket, work: Callable[[], T]) -> tuple[T, list[Request]]:
    """Return the outcome of some work, and the requests that it sent."""
    bucket.faults.forget()
    outcome = work()
    return outcome, bucket.faults.seen


@pytest.mark.slow
def test_commits_and_vacuum_take_few_requests(
    faulty: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, with two to spare; each was two to four times as many once."""
    monkeypatch.setattr(lock, "LEASE_S", 60.0)  # none is renewed meanwhile
    lake, made = requests_of(faulty, lambda: create_lake(faulty.uri, CONFIG))
    rows, registered = requests_of(
        faulty, lambda: lake.committer.register([{"slide_id": n, "uri": n} for n in SLIDES])
    )
    cuts = [cut(lake, row["slide"], row["slide_id"], 5) for row in rows]
    _, committed = requests_of(faulty, lambda: lake.committer.commit_slides(cuts))
    bad = [{"slide_id": f"bad-{n}", "slide": 3 + n, "uri": "", "reason": "-"} for n in range(9)]
    _, failed = requests_of(faulty, lambda: lake.committer.fail(bad))
    _, opened = requests_of(faulty, lambda: open_lake(faulty.uri))
    _, vacuumed = requests_of(faulty, lambda: vacuum(lake, keep=1))
    counts = {
        "create": (len(made), 52),
        "register": (len(registered), 36),
        "commit": (len(committed), 42 + 2 * len(SLIDES)),  # two shards a slide
        "fail": (len(failed), 29),
        "open": (len(opened), 7),
        "vacuum": (len(vacuumed), 110),
    }
    assert all(count <= most for count, most in counts.values()), counts


@pytest.mark.slow
def test_a_stream_reads_neighbours_at_once_and_nothing_twice(
    faulty: Bucket, tmp_path: Path
) -> None:
    near = make_training_lake(tmp_path / "lake")
    copy_lake(near.uri, faulty.uri)
    far = open_lake(faulty.uri)
    settings: dict[str, Any] = {"mpp": 0.5, "batch_tiles": 16, "block_tiles": 8}
    streams = [lake.stream("plain", **settings, pixels="jpeg") for lake in (far, near)]
    for _ in range(2):
        (batches, seen), others = requests_of(faulty, lambda: list(streams[0])), list(streams[1])
        for batch, other in zip(batches, others, strict=True):
            np.testing.assert_array_equal(batch.tile_id, other.tile_id)
            np.testing.assert_array_equal(batch.features["plain"], other.features["plain"])
            assert batch.jpeg == other.jpeg
    keys = Counter(f"{one.method} {one.target.partition('lake/')[2].split('/')[0]}" for one in seen)
    assert streams[0].requests / 4 < len(seen) <= streams[0].requests, keys
    # Lance has read the whole of so small a column with its footer.
    assert set(keys) <= {"GET features", "GET tiles"}
    stored = sum(one.sent for one in seen if "/tiles/" in one.target)
    tars = int(near.tiles_of(mpp=0.5)["shard_bytes"].sum())
    assert stored < 1.02 * tars
    features = sum(one.sent for one in seen if "/features/" in one.target)
    assert features < 1.05 * 2 * DIMS["plain"] * streams[0].tiles
    assert streams[1].requests == 0


# ---------------------------------------------------------------------- trouble


def _worker(uri: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, uri],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_at_once_end_with_each_slide_once(
    bucket: Bucket, undisturbed: dict[str, object]
) -> None:
    workers = [_worker(bucket.uri) for _ in range(2)]
    for worker in workers:
        _, errors = worker.communicate(timeout=180)
        assert worker.returncode == 0, errors
    lake = open_lake(bucket.uri)
    assert contents(lake) == undisturbed
    assert verify(lake).ok


@pytest.mark.slow
def test_killed_processes_are_followed_and_it_ends_the_same(
    bucket: Bucket, undisturbed: dict[str, object]
) -> None:
    chance, hit = random.Random(5), 0
    for _ in range(2):
        with _worker(bucket.uri) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "started\n"
            time.sleep(chance.uniform(0.3, 2.0))
            hit += worker.poll() is None
            worker.send_signal(signal.SIGKILL)
    assert hit > 0
    lake = begun(bucket.uri)
    assert contents(lake) == undisturbed
    assert verify(lake).ok


@pytest.mark.slow
def test_failing_requests_change_nothing_and_show_no_key(
    faulty: Bucket,
    undisturbed: dict[str, object],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One request in four fails, in every way that requests do."""
    monkeypatch.setattr(lock, "LEASE_S", 20.0)  # repeated requests outlast one of two seconds
    caplog.set_level(logging.DEBUG)
    kinds = ("slow_down", "internal", "refused", "lost", "cut")
    with faulty.faults.at(**dict.fromkeys(kinds, 0.05)):
        lake = _again(lambda: begun(faulty.uri), faulty)
        assert _again(lambda: contents(lake), faulty) == undisturbed
        assert _again(lambda: verify(lake), faulty).damage == []
    done = faulty.faults.done
    assert all(done[kind] > 5 for kind in kinds), done
    faulty.faults.set(denied=".")
    with pytest.raises(LakeError, match="access is denied") as caught:
        open_lake(faulty.uri)
    faulty.faults.set(denied="")
    assert verify(open_lake(faulty.uri)).ok
    printed = capfd.readouterr()
    assert len(caplog.records) > 1000  # botocore tells every request
    texts = [repr(error) for error in causes(caught.value)]
    for text in (caplog.text, printed.out, printed.err, repr(lake.store), *texts):
        assert SECRET not in text
    assert not [key for key, content in faulty.objects().items() if SECRET.encode() in content]


@pytest.mark.slow
def test_listings_that_break_off_are_repeated_or_are_the_buckets_error(faulty: Bucket) -> None:
    lake = create_lake(faulty.uri, CONFIG)
    table = lake.table(CATALOG)
    versions = table_versions(table)
    listings = {"only": "list-type=2.*catalog", "seed": 3}  # the first is cut
    with faulty.faults.at(cut=0.5):
        faulty.faults.set(**listings)
        faulty.faults.forget()
        assert table_versions(table) == versions
        assert open_table(lake.store, CATALOG).version == versions[-1]
    assert faulty.faults.done["cut"] > 0
    faulty.faults.set(seed=2, only="list-type=2")
    with faulty.faults.at(cut=0.1):
        assert vacuum(lake, keep=1, dry_run=True).kept == versions[:1]
    faulty.faults.set(rates={"cut": 1.0})
    for read in (
        lambda: table_versions(table),
        lambda: open_table(lake.store, CATALOG),
        lambda: copy_lake(faulty.uri, f"{faulty.uri}-copy"),
    ):
        with pytest.raises(BucketError, match="can't be reached") as caught:
            read()
        assert ".rs" not in str(caught.value)
        assert "%20" not in str(caught.value)
    faulty.faults.set(rates={}, only="", seed=0)


def _again(work: Callable[[], T], bucket: Bucket) -> T:
    """Return what `work` returns, run again as a job is after trouble of the bucket."""
    for _ in range(5):
        try:
            return work()
        except BucketError:
            continue
        except (ValueError, OSError) as error:
            # Lance asks but three times for a listing that ends in its middle.
            if Store(bucket.uri).explained(error) is None:
                raise
    return work()


# ---------------------------------------------------------------------- slides in a bucket


def test_slides_in_a_bucket_are_found_and_known(bucket: Bucket, tmp_path: Path) -> None:
    names = ["cohort one/a.svs", "cohort one/deep/b.svs", "cohort one/notes.txt", "c.svs"]
    local = tmp_path / "slides"
    for name in names:
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REAL_SLIDE, local / name)
    with contextlib.closing(bucket.client) as client:
        for name in names:
            client.put_object(Bucket=bucket.name, Key=name, Body=(local / name).read_bytes())
    root = f"s3://{bucket.name}"
    for pattern in ("", "/cohort one", "/cohort one/*.svs", "/**/*.svs", "/c.svs"):
        bucket_slides, local_slides = resolve([f"{root}{pattern}"]), resolve([f"{local}{pattern}"])
        assert [(s.slide_id, s.uri.removeprefix(root)) for s in bucket_slides] == [
            (s.slide_id, s.uri.removeprefix(str(local))) for s in local_slides
        ]
    assert fingerprint(f"{root}/c.svs") == fingerprint(str(local / "c.svs"))
    with pytest.raises(SlideError, match="does not exist"):
        fingerprint(f"{root}/d.svs")
    with pytest.raises(SlideError, match="is a folder"):
        fingerprint(f"{root}/cohort one")


@pytest.mark.slow
def test_a_lost_manifest_in_a_bucket_is_named_and_restored(bucket: Bucket) -> None:
    lake = begun(bucket.uri)
    whole, before = lake.version, contents(lake)
    add_slides(lake, {"d": 2})
    assert check_lake(bucket.uri).ok
    newest = open_lake(bucket.uri)
    lost = manifest_path(newest.store, CATALOG, newest.version)
    newest.store.remove([lost])
    verdict = check_lake(bucket.uri)
    assert [(one.part, one.path) for one in verdict.broken_tables] == [(TABLE, CATALOG)]
    assert whole in verdict.whole
    mended = lake_to_mend(bucket.uri)
    assert f"restore {bucket.uri} --at" in plan_repair(mended, verdict).advice
    restore(bucket.uri, whole)
    assert check_lake(bucket.uri).ok
    assert contents(open_lake(bucket.uri)) == before


@pytest.mark.slow
def test_damaged_features_in_a_bucket_are_repaired_and_checksums_added(bucket: Bucket) -> None:
    lake = add_teacher(begun(bucket.uri), "u", dim=4)
    before = contents(lake)
    features = lake.bag("a", "u", mpp=0.5).features.tobytes()
    folder = f"{features_table(0.5)}/data"
    contents_of = {
        name: lake.store.read_bytes(f"{folder}/{name}") for name in lake.store.names(folder)
    }
    name, whole = next((name, held) for name, held in contents_of.items() if features in held)
    at = whole.index(features)
    lake.store.write_bytes(
        f"{folder}/{name}", whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :]
    )
    lake.store.remove([ROOTS_FILE])  # as of a lake that an earlier slidelake wrote
    verdict = check_lake(bucket.uri)
    assert {(one.teacher, one.mpp) for one in verdict.damage} == {("u", 0.5)}
    done = repair(lake_to_mend(bucket.uri), verdict, yes=True)
    assert not done.left
    assert check_lake(bucket.uri).unchecked["files of tables"] > 0
    assert {check.name: check.add(open_lake(bucket.uri)) for check in FILE_CHECKS}
    assert check_lake(bucket.uri).ok
    assert not check_lake(bucket.uri).unchecked
    mended = open_lake(bucket.uri)
    assert contents(add_teacher(mended, "u", dim=4)) == before
