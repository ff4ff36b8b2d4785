"""A lake in each cloud is the lake it would be in a folder, while one S3 request in ten fails.

On the emulators of Azure and Google it is one in thirty, and none once the lakes are filled: each
failure is a pause of a second there, and a small study makes a thousand requests.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from polars.testing import assert_frame_equal

from examples.cohort import make_cohort
from featurestore import (
    BucketError,
    Lake,
    LakeConfig,
    compact,
    copy_lake,
    create_lake,
    open_lake,
    query,
    vacuum,
    verify,
)
from featurestore.storage import lock
from tests.conftest import ROOT
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

LARGE_BODY = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.servers,
    pytest.mark.timeout(900),
    LARGE_BODY,
]

T = TypeVar("T")
TEACHER = "colour-moments"
SLIDES = {"a": 5, "b": 3, "c": 4}
SMALL = LakeConfig(tile_px=256, mpps=(0.5,))
#: The share of requests that fail: refused as too many, the connection reset, or the answer cut.
SHARES = {"s3": 0.1, "az": 1 / 30, "gs": 1 / 30}
TROUBLE = ("slow_down", "reset", "cut")
WRITER = f"""
import sys
from featurestore import create_lake, LakeConfig
from featurestore.storage import lock
from tests.worlds.small_lake import add_slides, add_teacher
lock.LEASE_S, lock.POLL_S[False] = 20.0, 0.2
add_teacher(add_slides(create_lake(sys.argv[1], {SMALL}), {SLIDES}), "t")
"""


@dataclass(frozen=True, kw_only=True)
class Clouds:
    """Lakes of the same slides and features, one in a folder and one in each cloud.

    Attributes:
        folder: the local lake.
        buckets: a bucket of each cloud, by the protocol of its URIs.
        outcome: seconds that it took to fill a lake, or the error with which it ended, by URI.
        seen: number of requests meanwhile, by protocol.
        failed: number of those that failed, by protocol and kind.
    """

    folder: str
    buckets: dict[str, AnyBucket]
    outcome: dict[str, dict[str, object]]
    seen: dict[str, int]
    failed: dict[str, Counter[str]]


@pytest.fixture(autouse=True)
def leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set leases that outlast requests that are repeated."""
    monkeypatch.setattr(lock, "LEASE_S", 20.0)
    monkeypatch.setattr(lock, "POLL_S", {True: 0.05, False: 0.2})


@pytest.fixture(scope="module")
def four_slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the table of four synthetic slides; its folder holds the slides."""
    folder = tmp_path_factory.mktemp("slides")
    make_cohort(folder, patients=3, slides=4, width_px=1024, height_px=768, workers=1)
    (table,) = folder.glob("*.csv")
    return table


@pytest.fixture(scope="module")
def clouds(
    real_s3: RealS3,
    azure_account: tuple[str, str],
    google_url: str,
    four_slides: Path,
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
        for protocol, bucket in buckets.items():
            bucket.faults.forget()
            bucket.faults.set(rates=dict.fromkeys(TROUBLE, SHARES[protocol] / len(TROUBLE)))
        work = [sys.executable, "-m", "tests.worlds.cloud_work", str(four_slides)]
        encoder = str(ROOT / "examples" / "own_encoder.py")
        done = subprocess.run(
            [*work, encoder, *uris], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
        )
        texts = [text for text in done.stdout.splitlines() if text.startswith('{"lake"')]
        lines = [json.loads(text) for text in texts]
        seen = {protocol: len(bucket.faults.seen) for protocol, bucket in buckets.items()}
        failed = {protocol: bucket.faults.done for protocol, bucket in buckets.items()}
        for protocol in ("az", "gs"):
            buckets[protocol].faults.set(rates={})
        outcome = {line.pop("lake"): line for line in lines}
        yield Clouds(folder=folder, buckets=buckets, outcome=outcome, seen=seen, failed=failed)
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


@pytest.mark.parametrize("protocol", BUCKETS)
def test_requests_did_fail(clouds: Clouds, protocol: str) -> None:
    failed = clouds.failed[protocol]
    assert all(failed[kind] > 0 for kind in TROUBLE), failed
    assert 0.5 < failed.total() / clouds.seen[protocol] / SHARES[protocol] < 1.5


def test_lake_in_a_cloud_is_the_lake_in_a_folder(cloud_bucket: AnyBucket, clouds: Clouds) -> None:
    one, other = open_lake(cloud_bucket.uri), open_lake(clouds.folder)
    assert again(lambda: contents(one)) == contents(other)
    # How many commits an extract makes, and so the number of the version, depends on its speed.
    own = {"lake": "", "version": 0}
    assert again(one.info) | own == other.info() | own
    for slide_id in other.slides().select("slide_id").collect()["slide_id"]:
        bags = [again(partial(lake.bag, slide_id, TEACHER, mpp=0.5)) for lake in (one, other)]
        np.testing.assert_array_equal(bags[0].features, bags[1].features)
        np.testing.assert_array_equal(bags[0].tile_id, bags[1].tile_id)
    assert again(lambda: verify(one)).ok


def test_questions_are_answered_alike(cloud_bucket: AnyBucket, clouds: Clouds) -> None:
    one, other = open_lake(cloud_bucket.uri), open_lake(clouds.folder)
    for sql in (
        "SELECT slide_id, COUNT(*) AS n FROM tiles_mpp0_5 GROUP BY slide_id ORDER BY slide_id",
        "SELECT slide_id, patient_id, state FROM slides ORDER BY slide_id",
    ):
        assert_frame_equal(again(partial(query, one, sql)), query(other, sql))


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
        _, errors = writer.communicate(timeout=300)
        assert writer.returncode == 0, errors
    lake = open_lake(uri)
    assert again(lambda: contents(lake)) == contents(_written(str(tmp_path / "lake")))
    assert again(lambda: verify(lake)).ok


def _written(uri: str) -> Lake:
    return add_teacher(add_slides(create_lake(uri, SMALL), SLIDES), "t")
