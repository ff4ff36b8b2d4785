"""HTTP on loopback with the manners and bad manners of servers that hold slides."""

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


@dataclass(kw_only=True)
class SlideServer:
    """The files that are served, and the faults; a test changes them at any time.

    Attributes:
        url: of the server, without a slash at its end.
        files: contents by path.
        ranges: whether parts are announced and given.
        head: status of HEAD requests; signed URLs are often valid for GET alone.
        latency_s: before each answer.
        status: answered instead, by path.
        troubles: taken one after the other by GET requests: "503", "cut", "silent", "refused".
        after: what is done to a path's `files` before its n-th GET is answered, by (path, n).
        requests: method, path and range of all requests.
        sent: bytes of bodies, to clients that hang up only those that they took.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    head: int = 200
    latency_s: float = 0.0
    status: dict[str, int] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)
    after: dict[tuple[str, int], bytes | None] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def gets(self, path: str) -> int:
        """Return the number of GET requests for a path."""
        return sum(request[:2] == ("GET", path) for request in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: SlideServer

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        served, path = self.served, unquote(self.path.partition("?")[0])
        byte_range = self.headers.get("Range", "")
        with served.lock:
            served.requests.append((self.command, path, byte_range))
            trouble = ""
            if self.command == "GET":
                trouble = served.troubles.pop(0) if served.troubles else ""
                number = served.gets(path)
                if (path, number) in served.after:
                    self._change(path, served.after[path, number])
            data = served.files.get(path)
        time.sleep(served.latency_s)
        if trouble == "silent":
            time.sleep(3)
        if trouble in {"silent", "refused"}:
            self.close_connection = True
            return
        status = int(trouble) if trouble.isdigit() else served.status.get(path, 200)
        if self.command == "HEAD" and served.head != 200:
            status = served.head
        if status == 200 and data is None:
            status = 404
        if status != 200 or data is None:
            self._answer(status, b"<Error>token=hush</Error>", {})
            return
        self._content(data, byte_range, cut=trouble == "cut")

    def _change(self, path: str, content: bytes | None) -> None:
        if content is None:
            self.served.files.pop(path, None)
        else:
            self.served.files[path] = content

    def _content(self, data: bytes, byte_range: str, *, cut: bool) -> None:
        status, headers = 200, {"ETag": f'"{hash(data):x}"'}
        size = len(data)
        if self.served.ranges:
            headers["Accept-Ranges"] = "bytes"
            if bounds := re.fullmatch(r"bytes=(\d+)-(\d+)", byte_range):
                start, end = int(bounds[1]), min(int(bounds[2]) + 1, size)
                status, data = 206, data[start:end]
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self._answer(status, data, headers, cut=cut)

    def _answer(
        self, status: int, data: bytes, headers: dict[str, str], *, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if cut:
            data, self.close_connection = data[: len(data) // 2], True
        if self.command != "HEAD":
            self._send(data)

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # a client that hangs up
            for at in range(0, len(data), 1 << 16):
                block = data[at : at + (1 << 16)]
                with self.served.lock:  # before the client can have it, and look at the count
                    self.served.sent += len(block)
                self.wfile.write(block)


@contextlib.contextmanager
def slide_server() -> Iterator[SlideServer]:
    """A server for as long as the block runs."""
    served = SlideServer()
    handler = type("Handler", (_Handler,), {"served": served})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        served.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
