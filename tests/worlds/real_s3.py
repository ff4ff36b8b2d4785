"""Fixtures: a real S3 server (Ceph's radosgw) and a proxy before it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.worlds import radosgw as radosgw_server
from tests.worlds.s3 import Bucket, new_bucket, proxied, served


@dataclass(frozen=True, kw_only=True)
class RealS3:
    """A radosgw with two users.

    Attributes:
        url: its URL.
        proxy: the URL of a proxy before it, whose faults a test sets.
        key: id of the access key of the user whose buckets are used.
        secret: the secret key of that user.
        stranger_key: id of the access key of a user who may do nothing in these buckets.
        stranger_secret: the secret key of that user.
    """

    url: str
    proxy: str
    key: str
    secret: str
    stranger_key: str
    stranger_secret: str


@pytest.fixture(scope="session")
def real_s3() -> Iterator[RealS3]:
    """Yield a radosgw that runs until the tests end; it takes about 15 s to start."""
    if missing := radosgw_server.missing_packages():
        pytest.skip(f"not installed: {' '.join(missing)}")
    with served(Path(radosgw_server.__file__)) as line:
        assert line, "the radosgw did not start"
        facts = json.loads(line)
        with proxied(facts["url"]) as (_, proxy):
            yield RealS3(proxy=proxy, **facts)


@pytest.fixture
def real_bucket(real_s3: RealS3, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """Return a new bucket of the radosgw for one test; the environment leads there."""
    return new_real_bucket(real_s3, monkeypatch)


def new_real_bucket(real_s3: RealS3, environment: pytest.MonkeyPatch) -> Bucket:
    """Return a new bucket of the radosgw; the environment leads to it and to nothing else."""
    return new_bucket((real_s3.url, real_s3.proxy), environment, real_s3.key, real_s3.secret)


@pytest.fixture
def faulty_real_bucket(real_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """Yield a bucket of the radosgw behind a proxy whose `faults` a test sets."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", real_bucket.faults.url)
    real_bucket.faults.set()
    real_bucket.faults.forget()
    yield real_bucket
    real_bucket.faults.set(rates={}, denied="")
