"""Weights from a hub: its client against a server on loopback that answers as the hub does."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import ROOT

WEIGHTS = b"weights of a network" * 100
CODE = """
import sys
from dataclasses import replace
from ingest.teachers.cards.card_table import CARDS
from ingest.errors import TeacherError
from ingest.teachers.weights.weights_files import fetch_weights, find_weights
card = replace(CARDS["uni2_h"], hub=sys.argv[1], files=("model.safetensors", "pytorch_model.bin"))
try:
    path = fetch_weights(card)
except TeacherError as error:
    sys.exit(str(error))
assert find_weights(card) == path
print(path.name, len(path.read_bytes()))
"""


class Hub(BaseHTTPRequestHandler):
    """One open repository with one file, and one that asks for a licence."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        if self.path.startswith("/me/gated"):
            self._head(403, {"X-Error-Code": "GatedRepo"})
        elif self.path == "/me/open/resolve/main/pytorch_model.bin":
            headers = {
                "X-Repo-Commit": "a" * 40,
                "ETag": f'"{hashlib.sha256(WEIGHTS).hexdigest()}"',
            }
            self._head(200, {**headers, "Content-Length": str(len(WEIGHTS))})
            if body:
                self.wfile.write(WEIGHTS)
        else:
            self._head(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "a" * 40})

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def fetched(endpoint: str, repository: str, home: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", CODE, repository]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_weights_are_fetched_once_and_found_again(hub: str, tmp_path: Path) -> None:
    done = fetched(hub, "me/open", tmp_path)
    assert done.stdout.split() == ["pytorch_model.bin", str(len(WEIGHTS))], done.stderr
    assert fetched(hub, "me/open", tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("repository", "reason"),
    [
        ("me/gated", "ask for access on the hub's page of me/gated, and run `hf auth login`"),
        ("me/empty", "me/empty has no pytorch_model.bin"),
    ],
)
def test_what_can_not_be_fetched_says_why(
    hub: str, tmp_path: Path, repository: str, reason: str
) -> None:
    done = fetched(hub, repository, tmp_path)
    assert done.returncode == 1
    assert reason in done.stderr
    assert "put uni2_h.safetensors or uni2_h.pth into the folder" in done.stderr


def test_no_hub_at_all(tmp_path: Path) -> None:
    done = fetched("http://127.0.0.1:9", "me/open", tmp_path)
    assert "the hub can't be reached" in done.stderr
