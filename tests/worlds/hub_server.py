"""A Hugging Face hub on loopback: as much of its HTTP API as `huggingface_hub` asks for data sets.

Revisions, trees, resolved files, preupload, LFS uploads and commits, by the requests of
`HfFileSystem` and `HfApi.create_commit`; LFS stands for Xet, which needs servers of its own.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub.constants
import pytest
import yaml
from huggingface_hub import HfFileSystem

REPO = "lab/cohort"
LFS = ".parquet"


@dataclass(kw_only=True)
class Hub:
    """The one data set of the hub.

    Attributes:
        url: URL of the data set for fsspec.
        files: contents by path.
        uploads: LFS objects by SHA-256.
        commits: paths of each commit.
        requests: number of requests by kind.
        refuse_after: number of commits after which each further one is refused; None for no limit.
    """

    url: str = f"hf://datasets/{REPO}"
    files: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)
    refuse_after: int | None = None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, query = unquote(urlsplit(self.path).path), parse_qs(urlsplit(self.path).query)
        if path.startswith(f"/api/datasets/{REPO}/tree/main"):
            self._count("tree")
            folder = path.removeprefix(f"/api/datasets/{REPO}/tree/main").strip("/")
            recursive = query.get("recursive", ["false"])[0].lower() == "true"
            self._json(self._tree(folder, recursive=recursive))
        elif path in (f"/api/datasets/{REPO}", f"/api/datasets/{REPO}/revision/main"):
            self._count("info")
            self._json({"id": REPO, "sha": self._sha(), "private": True, "gated": False})
        elif path.startswith(f"/datasets/{REPO}/resolve/main/"):
            self._count("resolve")
            self._resolve(path.removeprefix(f"/datasets/{REPO}/resolve/main/"))
        else:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if path == "/api/validate-yaml":
            front = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            self._json({"errors": [], "warnings": []} if front["license"] else {}, 200)
        elif path == f"/api/datasets/{REPO}/preupload/main":
            self._json({"files": [self._mode(one) for one in json.loads(body)["files"]]})
        elif path == f"/datasets/{REPO}.git/info/lfs/objects/batch":
            objects = [self._upload(one) for one in json.loads(body)["objects"]]
            self._json({"transfer": "basic", "objects": objects})
        elif path == f"/api/datasets/{REPO}/commit/main":
            self._count("commit")
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._json({"error": f"no {path}"}, 404)

    def do_PUT(self) -> None:
        oid = self.path.removeprefix("/lfs/")
        content = self._body()
        if hashlib.sha256(content).hexdigest() != oid:
            self._json({"error": "another checksum"}, 400)
            return
        self.hub.uploads[oid] = content
        self._json({})

    def _body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _count(self, kind: str) -> None:
        self.hub.requests[kind] += 1

    def _sha(self) -> str:
        return hashlib.sha1(str(len(self.hub.commits)).encode()).hexdigest()

    def _tree(self, folder: str, *, recursive: bool) -> list[dict[str, Any]]:
        entries: dict[str, dict[str, Any]] = {}
        for path, content in self.hub.files.items():
            if folder and not path.startswith(f"{folder}/"):
                continue
            for parent in reversed(PurePosixPath(path).parents):
                name = str(parent)
                if name not in (".", folder) and (not folder or name.startswith(f"{folder}/")):
                    entries[name] = {"type": "directory", "path": name, "oid": "0" * 40}
            entries[path] = {
                "type": "file", "path": path, "size": len(content), "oid": _blob(content),
            }  # fmt: skip
        depth = folder.count("/") + 1 if folder else 0
        return [e for e in entries.values() if recursive or e["path"].count("/") == depth]

    def _resolve(self, path: str) -> None:
        if path not in self.hub.files:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        content, status, headers = self.hub.files[path], 200, {}
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(found[1]), int(found[2] or len(content) - 1) + 1
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            content, status = content[start:stop], 206
        self._send(content, status, {"ETag": '"e"', "X-Repo-Commit": self._sha(), **headers})

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        path = file["path"]
        kept = self.hub.files.get(path)
        mode = "lfs" if path.endswith(LFS) else "regular"
        oid = None if kept is None or mode == "lfs" else _blob(kept)
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _upload(self, one: dict[str, Any]) -> dict[str, Any]:
        if one["oid"] in self.hub.uploads:
            return dict(one)
        return {
            **one,
            "actions": {"upload": {"href": f"http://{self.headers['Host']}/lfs/{one['oid']}"}},
        }

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        hub = self.hub
        if hub.refuse_after is not None and len(hub.commits) >= hub.refuse_after:
            self._json({"error": "too many commits, wait an hour"}, 403)
            return
        contents = {}
        for line in lines[1:]:
            value = line["value"]
            contents[value["path"]] = (
                base64.b64decode(value["content"])
                if line["key"] == "file"
                else hub.uploads[value["oid"]]
            )
        hub.files.update(contents)
        hub.commits.append(sorted(contents))
        url = f"http://{self.headers['Host']}/datasets/{REPO}/commit/{self._sha()}"
        self._json({"commitUrl": url, "commitOid": self._sha()})

    def _json(
        self, answer: object, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        content = json.dumps(answer).encode()
        self._send(content, status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, text in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _blob(content: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve on a free port of loopback; yield the URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Yield an empty data set on a hub on loopback, where `hf://` leads."""
    made = Hub()
    with serving(type("Handler", (_Handler,), {"hub": made})) as url:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_loopback")
        HfFileSystem.clear_instance_cache()
        yield made
        HfFileSystem.clear_instance_cache()
