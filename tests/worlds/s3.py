"""Fixtures: buckets on loopback, with and without trouble; see `s3_server`."""

import contextlib
import http.client
import json
import os
import re
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import botocore.session
import pytest

from featurestore import Store
from tests.worlds.s3_server import CONTROL

KEY, SECRET = "AKIALOOPBACKONLY", "loopback-secret-5f2c0d9b7e"
SERVER = Path(__file__).with_name("s3_server.py")


class Request(NamedTuple):
    """A request as the proxy saw it, its trouble ("" for none), and the bytes of the answer."""

    method: str
    target: str
    headers: dict[str, str]
    trouble: str
    sent: int

    @property
    def key_id(self) -> str:
        """The access key that signed the request; empty if it was not signed."""
        credential = re.search(r"Credential=([^/]+)/", self.headers.get("authorization", ""))
        return credential[1] if credential else ""


@dataclass(kw_only=True)
class Faults:
    """The faults that the proxy makes, and the requests that it received.

    Settings: `rates`, the share of the requests per kind of trouble (`slow_down` (503) and
    `internal` (500) are answered before S3 saw the request; `refused` closes the connection before
    and `reset` resets it, `lost` closes it after S3 did what was asked; `cut` ends the answer in
    its middle; `delayed` waits `delay_s`); `only`, a pattern of "METHOD target" that trouble keeps
    to; `denied`, one that is answered with 403, or with status and body of `denial`; `terse`, to
    leave out of a 412 which condition failed, as MinIO does; `seed`.
    """

    url: str
    settings: dict[str, Any] = field(default_factory=dict)

    def set(self, **settings: object) -> None:
        """Change settings; the schedule begins anew."""
        self.settings |= settings
        self._ask("PUT", self.settings)

    @contextlib.contextmanager
    def at(self, **rates: float) -> Iterator[None]:
        """Make trouble at these rates inside the block only."""
        self.set(rates=rates)
        try:
            yield
        finally:
            self.set(rates={})

    @property
    def seen(self) -> list[Request]:
        """Return the requests since the last `forget`, in order."""
        return [Request(*fields) for fields in self._ask("GET")]

    @property
    def done(self) -> Counter[str]:
        """Return the number of faults made, by kind."""
        return Counter(request.trouble for request in self.seen if request.trouble)

    def forget(self) -> None:
        """Forget what was seen."""
        self._ask("DELETE")

    def _ask(self, method: str, body: object = None) -> Any:  # noqa: ANN401 - JSON
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, CONTROL, json.dumps(body))
            return json.loads(connection.getresponse().read())


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """An empty bucket, and how to look at it without any of our code.

    Attributes:
        name: its name.
        server: the S3 server's URL, without trouble.
        faults: of the proxy; the environment leads there only in the fixture `faulty`.
        key: id of the owner's access key.
        secret: the owner's secret key.
    """

    name: str
    server: str
    faults: Faults
    key: str = KEY
    secret: str = SECRET

    @property
    def uri(self) -> str:
        """A folder in it for a lake."""
        return f"s3://{self.name}/some folder/lake"

    @property
    def client(self) -> Any:  # noqa: ANN401 - made by botocore at run time
        """A plain botocore client of it, past the proxy."""
        return botocore.session.Session().create_client(
            "s3",
            "us-east-1",
            endpoint_url=self.server,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
        )

    def objects(self) -> dict[str, bytes]:
        """Return the contents of all objects of the bucket, by key."""
        with contextlib.closing(self.client) as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
            keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
            return {
                key: client.get_object(Bucket=self.name, Key=key)["Body"].read() for key in keys
            }


@contextlib.contextmanager
def served(*words: str | Path) -> Iterator[str]:
    """Start a server in a process that ends with its stdin; yield the first line that it prints."""
    with subprocess.Popen(
        [sys.executable, "-P", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline()
        finally:
            process.stdin.close()


@contextlib.contextmanager
def proxied(url: str = "") -> Iterator[tuple[str, str]]:
    """Yield the URLs of a server, moto where none is given, and of a proxy before it."""
    with served(SERVER, *filter(None, [url])) as line:
        server, proxy = line.split()
        yield url or f"http://127.0.0.1:{server}", f"http://127.0.0.1:{proxy}"


@pytest.fixture(scope="session")
def s3_urls() -> Iterator[tuple[str, str]]:
    """The URLs of an S3 server and of the proxy before it, which all tests of the run share."""
    with proxied() as urls:
        yield urls


def clear_clouds(environment: pytest.MonkeyPatch) -> None:
    """Take everything that leads to a cloud, or has a key of one, out of the environment."""
    clouds = ("AWS_", "AZURE_", "GOOGLE_", "STORAGE_EMULATOR_HOST")
    for name in [name for name in os.environ if name.startswith(clouds)]:
        environment.delenv(name)


def new_bucket(
    urls: tuple[str, str], environment: pytest.MonkeyPatch, key: str = KEY, secret: str = SECRET
) -> Bucket:
    """A new bucket; the environment leads to it and to nothing else."""
    clear_clouds(environment)
    return add_bucket(urls, environment, key, secret)


def add_bucket(
    urls: tuple[str, str], environment: pytest.MonkeyPatch, key: str, secret: str
) -> Bucket:
    """A new bucket, to which the environment leads."""
    environment.setenv("AWS_ACCESS_KEY_ID", key)
    environment.setenv("AWS_SECRET_ACCESS_KEY", secret)
    environment.setenv("AWS_ENDPOINT_URL", urls[0])
    environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
    environment.setenv("AWS_CONFIG_FILE", os.devnull)
    environment.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    made = Bucket(
        name=f"bucket-{secrets.token_hex(4)}",
        server=urls[0],
        faults=Faults(url=urls[1]),
        key=key,
        secret=secret,
    )
    with contextlib.closing(made.client) as client:
        client.create_bucket(Bucket=made.name)
    return made


@pytest.fixture
def bucket(s3_urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A new bucket for one test."""
    return new_bucket(s3_urls, monkeypatch)


@pytest.fixture
def faulty(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """The bucket behind a proxy whose `faults` a test sets."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.faults.url)
    bucket.faults.set()
    bucket.faults.forget()
    yield bucket
    bucket.faults.set(rates={}, denied="")


@pytest.fixture(params=["local", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty place for a lake: in a folder, then in a bucket."""
    if request.param == "s3":
        return Store(request.getfixturevalue("bucket").uri)
    (tmp_path / "lake").mkdir()
    return Store(tmp_path / "lake")
