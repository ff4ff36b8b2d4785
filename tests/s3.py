"""An S3 server on loopback (moto, a process of its own) and a proxy before it that makes trouble.

moto looks whether a key is there and writes it in two steps, so two conditional writes could both
win; S3 decides them one after the other, and so does `serve`.
"""

import contextlib
import http.client
import os
import random
import re
import secrets
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import botocore.session
import pytest

from featurestore import Store

KEY, SECRET = "AKIALOOPBACKONLY", "loopback-secret-5f2c0d9b7e"
ROOT = Path(__file__).resolve().parent.parent
HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "server", "date"}
KINDS = ("slow_down", "internal", "refused", "lost", "cut", "delayed")
ERRORS = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "internal": (500, "InternalError", "We encountered an internal error. Please try again."),
    "denied": (403, "AccessDenied", "Access Denied"),
}


def serve() -> None:
    """Serve S3 on a free port of 127.0.0.1, which is printed, until stdin is closed."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_request(self, *_: object) -> None:
            pass

    app = DomainDispatcherApplication(create_backend_app)
    one_write = threading.Lock()

    def in_turn(environ: dict[str, Any], start: Any) -> Iterable[bytes]:  # noqa: ANN401 - WSGI
        reads = environ["REQUEST_METHOD"] in {"GET", "HEAD"}
        with contextlib.nullcontext() if reads else one_write:
            return list(app(environ, start))

    server = make_server("127.0.0.1", 0, in_turn, threaded=True, request_handler=Quiet)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()

    def stop_with_parent() -> None:
        sys.stdin.read()
        server.shutdown()

    threading.Thread(target=stop_with_parent, daemon=True).start()
    server.serve_forever()


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """A running S3 server without any bucket; gives its URL."""
    with subprocess.Popen(
        [sys.executable, "-c", "from tests.s3 import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


class Request(NamedTuple):
    """A request as the proxy saw it, and the trouble it was given ("" for none)."""

    method: str
    target: str
    headers: dict[str, str]
    trouble: str

    @property
    def key_id(self) -> str:
        """The access key that signed the request; empty if it was not signed."""
        found = re.search(r"Credential=([^/]+)/", self.headers.get("authorization", ""))
        return found[1] if found else ""


@dataclass(kw_only=True)
class Faults:
    """What the proxy does to requests; a test sets the rates while it runs.

    Attributes:
        rates: share of the requests per kind of trouble: `slow_down` (503) and `internal` (500) are
            answered before S3 saw the request; `refused` closes the connection before, `lost` after
            S3 did what was asked; `cut` ends the answer in its middle; `delayed` waits `delay_s`.
        only: a pattern of "METHOD target" that trouble keeps to.
        denied: a pattern of "METHOD target" that is answered with 403.
        terse: leave out of a 412 which condition failed, as MinIO does.
        seen: all requests, in order.
    """

    rates: dict[str, float] = field(default_factory=dict)
    only: str = ""
    denied: str = ""
    terse: bool = False
    delay_s: float = 0.05
    seed: int = 0
    seen: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random, self._lock = random.Random(self.seed), threading.Lock()

    def next(self, method: str, target: str, headers: dict[str, str]) -> str:
        """Note a request and draw its trouble."""
        with self._lock:
            hit = re.search(self.only, f"{method} {target}")
            kinds = [kind for kind in KINDS if hit and self.rates.get(kind)]
            weights = [self.rates[kind] for kind in kinds]
            draw = self._random.choices([*kinds, ""], [*weights, 1 - sum(weights)])[0]
            if self.denied and re.search(self.denied, f"{method} {target}"):
                draw = "denied"
            self.seen.append(Request(method, target, headers, draw))
            return draw

    @property
    def done(self) -> Counter[str]:
        """How often each kind of trouble was made."""
        return Counter(request.trouble for request in self.seen if request.trouble)

    @contextlib.contextmanager
    def at(self, **rates: float) -> Iterator["Faults"]:
        """Make trouble at these rates inside the block only."""
        self.rates = rates
        try:
            yield self
        finally:
            self.rates = {}


@contextlib.contextmanager
def fault_proxy(upstream: str) -> Iterator[tuple[str, Faults]]:
    """A proxy on a free port of 127.0.0.1 in front of `upstream`; gives its URL and its faults."""
    faults = Faults()
    host = urlsplit(upstream).netloc

    class Handler(_Handler):
        trouble, upstream_host = faults, host

    with _Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", faults
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is none of the server's business."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    trouble: Faults
    upstream_host: str

    def log_message(self, *_: object) -> None:
        pass

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        kind = self.trouble.next(self.command, self.path, headers)
        if kind == "delayed":
            time.sleep(self.trouble.delay_s)
        if kind in ERRORS:
            self._refuse(*ERRORS[kind])
        elif kind == "refused":
            self.close_connection = True
        else:
            self._forward(body, kind)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815 - http.server's names

    def _refuse(self, status: int, code: str, message: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else text)

    def _forward(self, body: bytes, kind: str) -> None:
        upstream = http.client.HTTPConnection(self.upstream_host, timeout=30)
        with contextlib.closing(upstream):
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body)
            reply = upstream.getresponse()
            data = reply.read()
        if self.trouble.terse and reply.status == 412:
            data = re.sub(rb"<Condition>.*?</Condition>", b"", data)
        if kind == "lost" or (kind == "cut" and len(data) < 2):
            self.close_connection = True
            return
        self.send_response_only(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in HOP_BY_HOP | {"content-length"}:
                self.send_header(name, value)
        head_size = reply.getheader("Content-Length", "0")
        self.send_header("Content-Length", head_size if self.command == "HEAD" else str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if kind == "cut" else data)
        self.close_connection |= kind == "cut"


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """An empty bucket, and how to look at it without any of our code.

    Attributes:
        name: its name.
        server: the S3 server's URL, without trouble.
        faults: what the proxy does that the environment's endpoint leads to; None without a proxy.
    """

    name: str
    server: str
    faults: Faults | None = None

    @property
    def uri(self) -> str:
        """A folder in it for a lake."""
        return f"s3://{self.name}/some folder/lake"

    @property
    def client(self) -> Any:  # noqa: ANN401 - made by botocore at run time
        """A plain botocore client of it, past the proxy."""
        session = botocore.session.Session()
        return session.create_client(
            "s3",
            "us-east-1",
            endpoint_url=self.server,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
        )

    def objects(self) -> dict[str, bytes]:
        """All objects in it."""
        with contextlib.closing(self.client) as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
            keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
            return {
                key: client.get_object(Bucket=self.name, Key=key)["Body"].read() for key in keys
            }


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """The URL of an S3 server that all tests of the run share."""
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(s3_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bucket:
    """A new bucket; the environment leads to it and to nothing else."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_url)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))
    made = Bucket(name=f"bucket-{secrets.token_hex(4)}", server=s3_url)
    with contextlib.closing(made.client) as client:
        client.create_bucket(Bucket=made.name)
    return made


@pytest.fixture
def faulty(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """The bucket behind a proxy whose `faults` a test sets."""
    with fault_proxy(bucket.server) as (url, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield replace(bucket, faults=faults)


@pytest.fixture(params=["local", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty place for a lake: in a folder, then in a bucket."""
    if request.param == "s3":
        return Store(request.getfixturevalue("bucket").uri)
    (tmp_path / "lake").mkdir()
    return Store(tmp_path / "lake")
