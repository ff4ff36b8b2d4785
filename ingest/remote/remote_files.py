"""A slide's file at a URL: what the server states of it, ranges of its bytes, errors in one line.

Clients of buckets try again by themselves; for everything else (HTTP above all) it is done here.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import fsspec
import fsspec.asyn
import fsspec.config

from featurestore.storage import WEB, bucket_clients, protocol_of, shown
from ingest.remote import remote_errors
from ingest.remote.remote_errors import (
    BUCKETS,
    HttpStatusError,
    ShortReadError,
    as_slide_errors,
    passes,
)

PAUSE_S = 0.25  # before the second try; doubled before each further one, 8 s in all
CONNECT_S = 15.0
STREAM_BYTES = 4 << 20
IMAGE = re.compile(r"(.+\.\w+)#(\d{1,4})")
MARKS = ("etag", "lastmodified", "mtime", "updated", "md5hash", "created", "generation")

T = TypeVar("T")
Headers = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class FileState:
    """The size and the marks of a file on a server.

    Attributes:
        size: bytes of the file; None if the server does not state them.
        is_folder: whether it is a folder.
        ranges: whether parts of it can be requested, many at once.
        marks: values that change with its content (ETag, times), where the server states them.
    """

    size: int | None
    is_folder: bool
    ranges: bool
    marks: tuple[tuple[str, str], ...]


def is_local(uri: str) -> bool:
    """Whether a URI is a path, or a file:// URI."""
    protocol, url, _ = uri.partition("://")
    return not url or protocol in {"file", "local"}


def split_image(uri: str) -> tuple[str, int | None]:
    """Split `slide.tif#2` into the file and the number of its image; None where none is named.

    A local file that really has such a name is not split.

    >>> split_image("s3://a/b.tif#2"), split_image("a #3 [b].svs")
    (('s3://a/b.tif', 2), ('a #3 [b].svs', None))
    """
    match = IMAGE.fullmatch(uri)
    if match is None or (is_local(uri) and os.path.lexists(open_fs(uri)[1])):
        return uri, None
    return match[1], int(match[2])


def name_of(uri: str) -> str:
    """Return the name of the file that a URI points to.

    >>> name_of("https://host/a%20slide.svs?token=1#x")
    'a slide.svs'
    """
    if protocol_of(uri) in WEB:
        uri = unquote(urlsplit(uri).path)
    return uri.rstrip("/").rpartition("/")[2]


def open_fs(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a URI, set up as for lakes, and the path of the file in it.

    Raises:
        SlideError: there is no client for the protocol, or its settings are not valid.
    """
    protocol = protocol_of(uri)
    with as_slide_errors(uri):
        if is_local(uri):
            local = fsspec.filesystem("file")
            return local, local._strip_protocol(uri) if "://" in uri else uri
        if protocol in BUCKETS and uri.startswith(f"{protocol}://"):
            fs = bucket_clients.file_system(protocol)
            return fs, fs._strip_protocol(uri)
        options = _web_options(protocol) if uri.startswith(f"{protocol}://") else {}
        file_system: tuple[fsspec.AbstractFileSystem, str] = fsspec.core.url_to_fs(uri, **options)
        return file_system


def _web_options(protocol: str) -> dict[str, Any]:
    """Return options for HTTP: no compression, which changes sizes and ranges; bounded waits."""
    if protocol not in WEB:
        return {}
    from aiohttp import ClientTimeout

    settings = {**fsspec.config.conf.get("http", {}), **fsspec.config.conf.get(protocol, {})}
    timeout = ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=remote_errors.SILENT_S)
    return {
        **settings,
        "headers": {"Accept-Encoding": "identity", **(settings.get("headers") or {})},
        "client_kwargs": {"timeout": timeout, **(settings.get("client_kwargs") or {})},
    }


class RemoteFile:
    """A file that is not on this machine.

    Args:
        uri: URI of the file.

    Attributes:
        shown: the URI as it may be printed.
        path: path of the file in its file system.

    Raises:
        SlideError: there is no client for the protocol.
    """

    def __init__(self, uri: str) -> None:
        self.uri, self.shown = uri, shown(uri)
        self._fs, self.path = open_fs(uri)
        self._web = protocol_of(uri) in WEB and "::" not in uri.partition("://")[0]
        self._tries = 2 if protocol_of(uri) in BUCKETS else remote_errors.TRIES

    def state(self) -> FileState:
        """Return the present size and marks of the file.

        Raises:
            SlideError: the file does not exist, or can't be read.
        """
        if self._web:
            return self._tried(self._web_state)
        info = self.info()
        size = info.get("size")
        return FileState(
            size=None if size is None else int(size),
            is_folder=info.get("type") == "directory",
            ranges=bool(self._fs.async_impl),
            marks=_marks(info),
        )

    def info(self) -> dict[str, Any]:
        """Return what a bucket states of the file, from one request.

        Raises:
            SlideError: the file does not exist, or can't be read.
        """
        return self._tried(lambda: dict(self._fs.info(self.path)))

    def _web_state(self) -> FileState:
        status, headers = fsspec.asyn.sync(self._fs.loop, self._ask, "HEAD", {})
        if status in {400, 401, 403, 405, 501}:
            # A signed URL is often signed for GET alone: ask for one byte.
            first = {"Range": "bytes=0-0"}
            status, headers = fsspec.asyn.sync(self._fs.loop, self._ask, "GET", first)
        if status >= 400 and status != 416:
            raise HttpStatusError(status)
        parts = headers.get("Content-Range", "")
        size = parts.rpartition("/")[2] or headers.get("Content-Length", "")
        return FileState(
            size=int(size) if size.isdigit() else None,
            is_folder=False,
            ranges=bool(parts) or headers.get("Accept-Ranges") == "bytes",
            marks=_marks(headers),
        )

    async def _ask(self, method: str, headers: Headers) -> tuple[int, Headers]:
        session = await self._fs.set_session()
        options = {**self._fs.kwargs, "headers": {**self._fs.kwargs["headers"], **headers}}
        options = {"allow_redirects": True, **options}
        async with session.request(method, self._fs.encode_url(self.path), **options) as reply:
            return reply.status, reply.headers

    def read(self, start: int, end: int) -> bytes:
        """Return all bytes from `start` up to `end`.

        Raises:
            SlideError: the bytes can't be read.
        """

        def once() -> bytes:
            content = bytes(self._fs.cat_file(self.path, start=start, end=end))
            if len(content) != end - start:
                raise ShortReadError
            return content

        return self._tried(once)

    def stream(self) -> Iterator[bytes]:
        """Yield all bytes of the file in blocks, from one request that is not tried again.

        Raises:
            SlideError: the file can't be read to its end.
        """
        options = {"block_size": 0, "size": 1} if self._web else {}
        with as_slide_errors(self.uri), self._fs.open(self.path, "rb", **options) as file:
            while block := file.read(STREAM_BYTES):
                yield bytes(block)

    def beside(self, folder: str) -> list["RemoteFile"]:
        """Return all files below a folder beside this file; "" for the folder of the file itself.

        Raises:
            SlideError: the folder can't be listed.
        """
        parent = f"{self.path.rpartition('/')[0]}/{folder}".rstrip("/")
        find = self._fs.find if folder else lambda at: self._fs.find(at, maxdepth=1)
        paths = self._tried(lambda: [str(path) for path in find(parent)])
        return [RemoteFile(self._fs.unstrip_protocol(path)) for path in paths]

    def relative_to(self, other: "RemoteFile") -> str:
        """Return the file's path relative to the folder of another file."""
        return self.path.removeprefix(other.path.rpartition("/")[0]).lstrip("/")

    def _tried(self, work: Callable[[], T]) -> T:
        """Return the result of `work`, which is tried again after temporary errors."""
        with as_slide_errors(self.uri):
            for number in range(self._tries - 1):
                try:
                    return work()
                except Exception as error:
                    if not passes(error):
                        raise
                    time.sleep(PAUSE_S * 2**number)
            return work()


def _marks(info: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    named = {re.sub(r"[-_]", "", str(key)).lower(): detail for key, detail in info.items()}
    return tuple((name, str(named[name])) for name in MARKS if named.get(name))
