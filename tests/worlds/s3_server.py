"""S3 on loopback (moto) and a proxy before it that makes trouble; a process of its own.

It must be another process than the tests': some calls of Lance keep the interpreter's lock while
they wait for an answer, so a server in a thread beside them could never give it. Run as
`python tests/worlds/s3_server.py [HOST]`; it prints the ports of both, and ends when its stdin is
closed. With the URL of another server in place of the host it is the proxy of that one alone.
"""

import contextlib
import http.client
import json
import random
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "server", "date", "content-length"}
KINDS = ("slow_down", "internal", "refused", "reset", "lost", "cut", "delayed")
#: With this SO_LINGER the end of a connection is a reset.
NO_LINGER = struct.pack("ii", 1, 0)
ERRORS = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "internal": (500, "InternalError", "We encountered an internal error. Please try again."),
    "denied": (403, "AccessDenied", "Access Denied"),
}
CONTROL = "/-/faults"
SETTINGS: dict[str, Any] = {
    "rates": {},
    "only": "",
    "denied": "",
    "denial": None,
    "terse": False,
    "delay_s": 0.05,
    "seed": 0,
}


def moto_server(host: str) -> Any:  # noqa: ANN401 - werkzeug's server
    """moto's S3. It looks whether a key is there and writes it in two steps, so that two
    conditional writes could both win; S3 decides one after the other, and so does this.
    """
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

    return make_server(host, 0, in_turn, threaded=True, request_handler=Quiet)


class Trouble:
    """Draws the trouble of each request from a seeded schedule, and keeps a list of all."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.seen: list[list[Any]] = []  # method, target, headers, trouble, bytes of the answer
        self.set({})

    def set(self, settings: dict[str, Any]) -> None:
        """Begin anew with these settings."""
        with self.lock:
            self.settings = {**SETTINGS, **settings}
            self._random = random.Random(self.settings["seed"])

    def next(self, method: str, target: str, headers: dict[str, str]) -> list[Any]:
        """Note a request and draw its trouble, "" for none; the note."""
        with self.lock:
            line, rates = f"{method} {target}", self.settings["rates"]
            kinds = [kind for kind in KINDS if rates.get(kind)]
            weights = [rates[kind] for kind in kinds]
            draw = ""
            if kinds and re.search(self.settings["only"], line):
                draw = self._random.choices([*kinds, ""], [*weights, max(0, 1 - sum(weights))])[0]
            if self.settings["denied"] and re.search(self.settings["denied"], line):
                draw = "denied"
            self.seen.append([method, target, headers, draw, 0])
            return self.seen[-1]


class Server(ThreadingHTTPServer):
    """The server that receives the clients' requests."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is none of the server's business."""


class Handler(BaseHTTPRequestHandler):
    """One connection of a client. `upstream` and `trouble` are set before it is used."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    upstream = ("", 0)
    trouble: Trouble
    note: list[Any]

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.note = [0] * 5
        if self.path == CONTROL:
            self._control(body)
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.note = self.trouble.next(self.command, self.path, headers)
        kind = self.note[3]
        if kind == "delayed":
            time.sleep(self.trouble.settings["delay_s"])
        if kind in ERRORS:
            status, code, message = ERRORS[kind]
            text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
            if kind == "denied" and self.trouble.settings["denial"]:
                status, text = self.trouble.settings["denial"]
            self._answer(status, {"Content-Type": "application/xml"}, text.encode())
        elif kind in {"refused", "reset"}:
            if kind == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            self.close_connection = True
        else:
            self._forward(body, kind)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815 - http.server's names

    def _control(self, body: bytes) -> None:
        if self.command == "PUT":
            self.trouble.set(json.loads(body))
        if self.command == "DELETE":
            self.trouble.seen.clear()
        with self.trouble.lock:
            text = json.dumps(self.trouble.seen)
        self._answer(200, {}, text.encode())

    def _answer(self, status: int, headers: dict[str, str], data: bytes, length: str = "") -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        body = b"" if self.command == "HEAD" else data
        self.note[4] = len(body)
        self.wfile.write(body)

    def upstream_answer(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of the answer of the server behind the proxy."""
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        return self.ask_upstream(self.command, self.path, headers, body)

    def ask_upstream(
        self, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """Send a request to the server behind the proxy."""
        with contextlib.closing(http.client.HTTPConnection(*self.upstream, timeout=60)) as server:
            server.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                server.putheader(name, value)
            server.endheaders(body)
            reply = server.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read()

    def _forward(self, body: bytes, kind: str) -> None:
        status, headers, data = self.upstream_answer(body)
        if self.trouble.settings["terse"] and status == http.HTTPStatus.PRECONDITION_FAILED:
            data = re.sub(rb"<Condition>.*?</Condition>", b"", data)
        self.close_connection |= kind in {"lost", "cut"}
        if kind == "lost" or (kind == "cut" and len(data) < 2):
            return
        lengths = [value for name, value in headers.items() if name.lower() == "content-length"]
        whole = lengths[0] if self.command == "HEAD" and lengths else str(len(data))
        headers = {name: value for name, value in headers.items() if name.lower() not in HOP_BY_HOP}
        self._answer(status, headers, data[: len(data) // 2] if kind == "cut" else data, whole)


def started(server: Any) -> int:  # noqa: ANN401 - of http.server, or of werkzeug
    """Serve in a thread; return the port."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port: int = server.server_port
    return port


def proxy_of(host: str, port: int, handler: type[Handler] = Handler) -> Server:
    """Return a proxy before a server, at the same address."""
    handler.upstream, handler.trouble = (host, port), Trouble()
    return Server((host, 0), handler)


def main(place: str = "127.0.0.1") -> None:
    """Serve until stdin is closed."""
    if "://" in place:
        url = urlsplit(place)
        host, port = str(url.hostname), int(url.port or 80)
    else:
        host, port = place, started(moto_server(place))
    print(port, started(proxy_of(host, port)), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
