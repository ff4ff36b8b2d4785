"""`slidelake status`: writers, what is pending, failures, commits; and that nothing is written."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from featurestore import ColumnWriter, Lake, LakeConfig, create_lake, open_lake
from featurestore.keep.lance_status import lake_status
from featurestore.storage import writer_lease
from featurestore.storage.bucket_lock import light
from featurestore.storage.lease_view import lease_views
from featurestore.storage.lock import commit_lock, no_writers
from featurestore.storage.store import Store
from tests.conftest import ROOT
from tests.worlds.s3 import Bucket

HOLD = """
import sys, time
from featurestore import Store
from featurestore.storage import writer_lease
with writer_lease(Store(sys.argv[1]), "ingest of 7 slides"):
    print("held", flush=True)
    time.sleep(600)
"""


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Return time and size of every file and folder: what a write would change."""
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in [folder, *folder.rglob("*")]
    }


@pytest.fixture
def writer(small: Lake) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes to the small lake."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, small.uri],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_writer_is_named_while_it_lives_and_told_apart_when_it_was_killed(
    small: Lake, writer: subprocess.Popen[str]
) -> None:
    (lease,) = lake_status(small).leases
    assert (lease.kind, lease.state, lease.purpose) == ("writer", "held", "ingest of 7 slides")
    assert lease.pid == writer.pid
    assert lease.since
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    before = files(Path(small.uri))
    (lease,) = lake_status(small).leases
    assert lease.state == "left behind"
    assert files(Path(small.uri)) == before, "the leases of the dead are left to those who write"


def test_commits_and_vacuums_are_seen(small: Lake) -> None:
    with commit_lock(small.store):
        assert [(view.kind, view.state) for view in lease_views(small.store)] == [
            ("commit", "held")
        ]
    with no_writers(small.store):
        assert [view.kind for view in lease_views(small.store)] == ["vacuum"]
    assert lease_views(small.store) == []
    with writer_lease(small.store, "a job"):
        assert [view.kind for view in lease_views(small.store)] == ["writer"]


def test_leases_of_a_bucket_are_seen_without_a_write(any_store: Store) -> None:
    with writer_lease(any_store, "ingest of 3 slides"), commit_lock(any_store):
        before = sorted((file.path, file.modified) for file in any_store.walk("leases"))
        views = lease_views(any_store)
        after = sorted((file.path, file.modified) for file in any_store.walk("leases"))
    assert [(view.kind, view.state) for view in views] == [("commit", "held"), ("writer", "held")]
    assert before == after
    assert lease_views(any_store) == []


def test_a_lease_of_a_bucket_that_is_not_renewed_is_left_behind(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(bucket.uri)
    beacon, _ = light(store, "a job that was killed", 60.0)
    assert beacon is not None
    (now,) = lease_views(store)
    assert (now.state, now.purpose) == ("held", "a job that was killed")
    then = time.time()
    monkeypatch.setattr("featurestore.storage.lease_view.time.time", lambda: then + 120)
    (later,) = lease_views(store)
    assert later.state == "left behind"
    assert later.last_sign_s is not None
    assert 100 < later.last_sign_s < 140


def test_slides_failures_and_missing_features(small: Lake) -> None:
    small.committer.register([{"slide_id": f"new{at}", "uri": f"{at}.svs"} for at in range(3)])
    for at in range(2):
        (row,) = small.committer.register([{"slide_id": f"new{at}", "uri": f"{at}.svs"}])
        small.committer.fail([{**row, "reason": f"reason {at}"}])
    field = small.committer.add_teacher(0.5, "good", 4, {"card": "good"})
    status = lake_status(small.refreshed(), last=1)
    assert status.slides == {"ready": 2, "pending": 1, "failed": 2}
    assert status.failed == 2
    assert status.failures == [{"slide": "new1", "reason": "reason 1"}]
    assert status.missing == [{"teacher": "good", "mpp": 0.5, "tiles": 8}]
    writer = ColumnWriter(small.store, 0.5, field, 0)
    frame = small.refreshed().tiles(mpp=0.5).collect()
    for slide in frame["slide"].unique(maintain_order=True):
        ids = frame.filter(frame["slide"] == slide)["tile_id"].to_numpy()
        writer.add(slide, ids, np.ones((len(ids), 4), np.float16))
    small.committer.commit_columns(0.5, [writer.finish()])
    assert lake_status(small.refreshed()).missing == []


def test_last_commits_are_the_versions_that_the_lake_has(small: Lake) -> None:
    small.committer.register([{"slide_id": "new", "uri": "new.svs"}])
    lake = small.refreshed()
    commits = lake_status(lake, last=2).commits
    assert [one["version"] for one in commits] == sorted(
        (one["version"] for one in commits), reverse=True
    )
    assert commits[0]["version"] == lake.version
    assert commits[0]["tables"] == ["slides.lance"]
    assert "features/mpp0.5.lance" in commits[1]["tables"]
    assert abs(time.time() - _seconds(commits[0]["at"])) < 3600
    assert lake_status(lake, last=0).commits == []
    versions = [one["version"] for one in lake_status(lake, last=1000).commits]
    assert len(versions) == len(set(versions)) > 2


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()


def test_nothing_is_written(small: Lake) -> None:
    before = files(Path(small.uri))
    lake_status(open_lake(small.uri))
    assert files(Path(small.uri)) == before


def test_trainings_that_have_no_student_yet_are_named(tmp_path: Path) -> None:
    lake = create_lake(tmp_path / "lake", LakeConfig())
    status = {"step": 3, "steps": 12, "epoch": 1, "losses": {}}
    for run in ("distill-x-1", "distill-x-2"):
        lake.write_json(f"runs/{run}/status.json", status)
    lake.write_bytes("runs/distill-x-2/curve.png", b"")
    lake.write_json("runs/mil-3/result.json", {})
    (training,) = lake_status(lake).trainings
    assert (training["run"], training["step"], training["steps"]) == ("distill-x-1", 3, 12)
    assert training["last_sign_s"] < 600
