"""A lake in each cloud is the lake it would be in a folder, while one request in ten fails."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from polars.testing import assert_frame_equal

from featurestore import (
    BucketError,
    Lake,
    compact,
    copy_lake,
    open_lake,
    query,
    vacuum,
    verify,
)
from featurestore.storage import lock
from tests.conftest import ROOT
from tests.worlds.cloud_work import CONFIG
from tests.worlds.clouds import (
    BUCKETS,
    AnyBucket,
    add_container,
    add_google_bucket,
    forget_clients,
)
from tests.worlds.real_s3 import RealS3
from tests.worlds.s3 import add_bucket, clear_clouds
from tests.worlds.small_lake import add_slides, add_teacher, contents

pytestmark = pytest.mark.slow

T = TypeVar("T")
TEACHER = "colour-moments"
SLIDES = {"a": 5, "b": 3, "c": 4}
#: One request in ten fails: refused as too many, its connection reset, or its answer cut.
TROUBLE = {"slow_down": 0.034, "reset": 0.033, "cut": 0.033}
WRITER = f"""
import sys
from featurestore import create_lake, LakeConfig
from featurestore.storage import lock
from tests.worlds.small_lake import add_slides, add_teacher
lock.LEASE_S, lock.POLL_S[False] = 20.0, 0.2
add_teacher(add_slides(create_lake(sys.argv[1], {CONFIG}), {SLIDES}), "t")
"""


@dataclass(frozen=True, kw_only=True)
class Clouds:
    """Lakes of the same slides and features, one in a folder and one in each cloud.

    Attributes:
        folder: the local lake.
        buckets: a bucket of each cloud, by the protocol of its URIs.
        outcome: seconds that it took to fill a lake, or the error with which it ended, by URI.
    """

    folder: str
    buckets: dict[str, AnyBucket]
    outcome: dict[str, dict[str, object]]


@pytest.fixture(autouse=True)
def leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set leases that outlast requests that are repeated."""
    monkeypatch.setattr(lock, "LEASE_S", 20.0)
    monkeypatch.setattr(lock, "POLL_S", {True: 0.05, False: 0.2})


@pytest.fixture(scope="module")
def clouds(
    real_s3: RealS3,
    azure_account: tuple[str, str],
    google_url: str,
    cohort: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Clouds]:
    """Fill a lake in a folder and one in each cloud; the environment leads to all of them."""
    with pytest.MonkeyPatch.context() as environment:
        clear_clouds(environment)
        urls = (real_s3.proxy, real_s3.proxy)
        buckets: dict[str, AnyBucket] = {
            "s3": add_bucket(urls, environment, real_s3.key, real_s3.secret),
            "az": add_container(azure_account, environment),
            "gs": add_google_bucket(google_url, environment),
        }
        folder = str(tmp_path_factory.mktemp("local") / "lake")
        uris = [folder, *(bucket.uri for bucket in buckets.values())]
        for bucket in buckets.values():
            bucket.faults.forget()
            bucket.faults.set(rates=TROUBLE)
        work = [sys.executable, "-m", "tests.worlds.cloud_work", str(cohort)]
        encoder = str(ROOT / "examples" / "own_encoder.py")
        done = subprocess.run(
            [*work, encoder, *uris], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
        )
        lines = map(json.loads, done.stdout.splitlines())
        yield Clouds(
            folder=folder, buckets=buckets, outcome={line.pop("lake"): line for line in lines}
        )
        for bucket in buckets.values():
            bucket.faults.set(rates={})
        forget_clients()


@pytest.fixture(params=BUCKETS)
def cloud_bucket(request: pytest.FixtureRequest, clouds: Clouds) -> AnyBucket:
    """Return the bucket of each cloud, in which a lake was filled without an error."""
    bucket = clouds.buckets[request.param]
    assert "error" not in clouds.outcome[bucket.uri], clouds.outcome[bucket.uri]["error"]
    return bucket


def again(work: Callable[[], T]) -> T:
    """Return what `work` returns, run again once, as a user does after trouble of the bucket."""
    try:
        return work()
    except BucketError:
        return work()


def test_requests_did_fail(cloud_bucket: AnyBucket) -> None:
    seen, done = len(cloud_bucket.faults.seen), cloud_bucket.faults.done
    assert all(done[kind] > 0 for kind in TROUBLE), done
    assert 0.05 < done.total() / seen < 0.15


def test_lake_in_a_cloud_is_the_lake_in_a_folder(cloud_bucket: AnyBucket, clouds: Clouds) -> None:
    one, other = open_lake(cloud_bucket.uri), open_lake(clouds.folder)
    assert again(lambda: contents(one)) == contents(other)
    assert {**again(one.info), "lake": ""} == {**other.info(), "lake": ""}
    for slide_id in other.slides().select("slide_id").collect()["slide_id"]:
        bags = [lake.bag(slide_id, TEACHER, mpp=0.5) for lake in (one, other)]
        np.testing.assert_array_equal(bags[0].features, bags[1].features)
        np.testing.assert_array_equal(bags[0].tile_id, bags[1].tile_id)
    assert again(lambda: verify(one)).ok


def test_questions_are_answered_alike(cloud_bucket: AnyBucket, clouds: Clouds) -> None:
    one, other = open_lake(cloud_bucket.uri), open_lake(clouds.folder)
    for sql in (
        "SELECT slide_id, COUNT(*) AS n, AVG(x) AS x FROM tiles_mpp0_5 GROUP BY 1 ORDER BY 1",
        "SELECT slide_id, patient_id, state FROM slides ORDER BY slide_id",
    ):
        assert_frame_equal(again(lambda sql=sql: query(one, sql)), query(other, sql))


def test_lake_is_kept_in_a_cloud(cloud_bucket: AnyBucket, clouds: Clouds, tmp_path: Path) -> None:
    whole = contents(open_lake(clouds.folder))
    uri = f"{cloud_bucket.uri}-copy"
    again(lambda: copy_lake(cloud_bucket.uri, uri))
    copied = open_lake(uri)
    again(lambda: compact(copied))
    copied.store.write_bytes("tiles/mpp0.5/999999-killed.tar", b"1")
    assert again(lambda: vacuum(open_lake(uri), keep=1)).files > 0
    assert not copied.store.exists("tiles/mpp0.5/999999-killed.tar")
    kept = open_lake(uri)
    assert again(lambda: contents(kept)) == whole
    assert again(lambda: verify(kept)).ok
    again(lambda: copy_lake(uri, tmp_path / "back"))
    shutil.rmtree(tmp_path / "back" / "leases", ignore_errors=True)
    assert contents(open_lake(tmp_path / "back")) == whole


def test_two_writers_at_once_end_with_each_slide_once(
    cloud_bucket: AnyBucket, tmp_path: Path
) -> None:
    uri = f"{cloud_bucket.uri}-two"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, uri], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for writer in writers:
        _, errors = writer.communicate(timeout=180)
        assert writer.returncode == 0, errors
    lake = open_lake(uri)
    assert again(lambda: contents(lake)) == contents(_written(str(tmp_path / "lake")))
    assert again(lambda: verify(lake)).ok


def _written(uri: str) -> Lake:
    from featurestore import create_lake

    return add_teacher(add_slides(create_lake(uri, CONFIG), SLIDES), "t")
