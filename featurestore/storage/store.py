"""Files of a lake, local or in a bucket, through fsspec; no listing is kept, so none is stale.

A file appears whole or not at all: locally by a rename, in buckets by the end of its upload. What
the bucket's clients raise becomes a `LakeError` of one line; only files that are missing, or are
there already, stay the builtin errors. Credentials stay where they are: none is kept, shown or sent
to a worker, which finds its own.
"""

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import fsspec

from featurestore.errors import LakeError
from featurestore.messages import counted
from featurestore.storage import bucket_clients
from featurestore.storage.bucket_errors import (
    codes,
    explain,
    missing_bucket_error,
    no_bucket,
    with_clear_errors,
)
from featurestore.storage.full_disk import disk_full_error
from featurestore.storage.read_errors import no_access

# fsspec uploads ten parts at once from memory: 160 MB here, 500 MB at its default. S3 takes 10,000
# parts, so a file may have 160 GB.
PART_BYTES = 16 << 20
DELETED_AT_ONCE = 1000  # the most that one DeleteObjects takes
MODIFIED = ("LastModified", "mtime", "last_modified")  # in s3fs, gcsfs, adlfs
TRIES = 5
NO_SUCH_RANGE = {"InvalidRange", "416", "RangeNotSatisfiable"}


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """A file of a lake.

    Attributes:
        path: relative to the lake.
        bytes: size of the file.
        modified: time of the last write, in seconds since 1970 by the store's clock.
    """

    path: str
    bytes: int
    modified: float


class Store:
    """A folder at a URI. Its methods expect relative paths with forward slashes.

    Picklable: a worker opens its own file system, with its own credentials, from the URI.

    Args:
        uri: a local path, or a URL: `file://`, `s3://bucket/lake`, `gs://`, `az://`.

    Raises:
        LakeError: the URI is none of these, or the package for it is not installed.
    """

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        text = os.fspath(uri)
        self.is_local = "://" not in text or text.startswith("file://")
        if self.is_local:
            self.uri = self.root = str(_local(text).expanduser().absolute())
        else:
            self.uri = bucket_clients.checked_uri(text)
            self.root = self.uri.partition("://")[2]
        self._bucket_was_there = False
        self.fs = self._open()

    @with_clear_errors
    def _open(self) -> fsspec.AbstractFileSystem:
        if self.is_local:
            return fsspec.filesystem("file")
        return bucket_clients.file_system(self._protocol)

    @property
    def _protocol(self) -> str:
        return "file" if self.is_local else self.uri.partition("://")[0]

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        return Store, (self.uri,)

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    # ------------------------------------------------------------------ names

    def path(self, rel: str) -> str:
        """Return the path by which the fsspec file system finds the file."""
        return f"{self.root}/{rel}" if rel else self.root

    def url(self, rel: str) -> str:
        """Return the full URI of the file for Lance: local paths plain, URLs percent-encoded."""
        if self.is_local:
            return self.path(rel)
        return f"{self._protocol}://{quote(self.path(rel))}"

    def shown(self, rel: str) -> str:
        """Return the full URI of the file for messages, as users write it: nothing is encoded."""
        return self.path(rel) if self.is_local else f"{self._protocol}://{self.path(rel)}"

    @property
    @with_clear_errors
    def lance_options(self) -> dict[str, str]:
        """Return Lance's storage options for what fsspec works with. They may hold keys."""
        return {} if self.is_local else bucket_clients.lance_options(self._protocol)

    def explained(self, error: BaseException) -> LakeError | None:
        """Return the error to raise if a failed read does not mean damage.

        The bucket, a full disk, a full table of descriptors, a broken disk, missing rights. None
        for missing or truncated files: that is damage.
        """
        if full := disk_full_error(error, self.uri):
            return full
        return no_access(error) if self.is_local else explain(error, self.uri)

    def missing_bucket(self) -> LakeError | None:
        """Return the error to raise instead of a missing file's if the whole bucket is missing.

        Google and Azure answer the same to both: until their bucket was there once, they are asked.
        """
        if self._protocol in {"gs", "az"} and not self._bucket_was_there:
            bucket = self.root.partition("/")[0]
            if bucket_clients.is_missing(self.fs, self._protocol, bucket):
                return missing_bucket_error(self.uri)
            self._bucket_was_there = True
        return None

    def _check_bucket(self, error: FileNotFoundError) -> None:
        """Raise if it is the bucket that is missing, and not a file in it."""
        if no_bucket(error):
            raise error
        if missing := self.missing_bucket():
            raise missing from error

    # ------------------------------------------------------------------ listing

    @with_clear_errors
    def exists(self, rel: str) -> bool:
        """Whether the file or folder is there; in a bucket a folder is any prefix with files."""
        if self.is_local:
            return Path(self.path(rel)).exists()
        try:
            self.fs.info(self.path(rel))
        except FileNotFoundError as error:
            self._check_bucket(error)
            return False
        return True

    @with_clear_errors
    def size(self, rel: str) -> int:
        """Return the size of a file in bytes. Raises FileNotFoundError if it is not there."""
        return int(self.fs.size(self.path(rel)))

    def names(self, rel: str) -> list[str]:
        """Return the sorted names in a folder; an empty list if there is no such folder."""
        return sorted(_name(entry["name"]) for entry in self._list(rel))

    def walk(self, rel: str = "") -> Iterator[FileInfo]:
        """Yield all files below a folder, in no order; none if there is no such folder.

        Only one folder's listing is in memory at a time (of S3 a thousand files), about a kilobyte
        per file.
        """
        if self._protocol == "s3":
            for entry in self._objects(rel, {}):
                path = str(entry["name"]).removeprefix(f"{self.root}/")
                yield FileInfo(path=path, bytes=int(entry["size"]), modified=_modified(entry))
            return
        for entry in self._list(rel):
            path = f"{rel}/{_name(entry['name'])}".lstrip("/")
            if entry["type"] == "directory":
                yield from self.walk(path)
            else:
                yield FileInfo(path=path, bytes=int(entry["size"]), modified=_modified(entry))

    @with_clear_errors
    def _list(self, rel: str) -> list[dict[str, Any]]:
        folder = self.path(rel)
        if self.is_local:
            return list(_scan(folder))
        if self._protocol == "s3":
            return list(self._objects(rel, {"Delimiter": "/"}))
        try:
            entries = self.fs.ls(folder, detail=True)
        except FileNotFoundError as error:
            self._check_bucket(error)
            return []
        # A file that is listed as a folder, and the empty object that some tools make for a folder,
        # appear under the very name of the folder.
        return [entry for entry in entries if str(entry["name"]).rstrip("/") != folder]

    def _objects(self, rel: str, options: dict[str, str]) -> Iterator[dict[str, Any]]:
        """Yield the objects of S3 in a folder; with a delimiter its own, and folders in it.

        A request for each thousand. fsspec lists the folder above as well where this one is empty,
        and each folder below by itself.
        """
        bucket, _, key = self.path(rel).partition("/")
        options = {"Bucket": bucket, "Prefix": f"{key}/".lstrip("/"), **options}
        while page := self._page(options):
            for entry in page.get("Contents", []):
                # The empty object that some tools make for a folder has the name of the folder.
                if not entry["Key"].endswith("/"):
                    name = f"{bucket}/{entry['Key']}"
                    yield {**entry, "name": name, "type": "file", "size": entry["Size"]}
            for entry in page.get("CommonPrefixes", []):
                yield {"name": f"{bucket}/{entry['Prefix']}", "type": "directory"}
            if not (token := page.get("NextContinuationToken")):
                return
            options["ContinuationToken"] = token

    @with_clear_errors
    def _page(self, options: dict[str, str]) -> dict[str, Any]:
        page: dict[str, Any] = self.fs.call_s3("list_objects_v2", **options)
        return page

    # ------------------------------------------------------------------ reading and writing

    @with_clear_errors
    def read_bytes(self, rel: str) -> bytes:
        """Return the whole file. Raises FileNotFoundError if it is not there."""
        return bytes(self.fs.cat_file(self.path(rel), **self._one_request))

    @property
    def _one_request(self) -> dict[str, int]:
        """Return the option by which s3fs neither asks for the size first nor reads in parts."""
        return {"max_concurrency": 1} if self._protocol == "s3" else {}

    @with_clear_errors
    def read_range(self, rel: str, start: int, size: int) -> bytes:
        """Return bytes of a file from `start` on; fewer than `size` only at its end, none past it.

        Raises:
            FileNotFoundError: the file is missing.
        """
        try:
            return bytes(self.fs.cat_file(self.path(rel), start=start, end=start + size))
        except Exception as error:
            if self._is_past_the_end(error, rel, start):
                return b""
            raise

    def _is_past_the_end(self, error: Exception, rel: str, start: int) -> bool:
        """Whether a bucket refused a range as there is no such byte, as in an empty file."""
        # The errors of Google's and Azure's clients are no OSErrors.
        return bool(codes(error) & NO_SUCH_RANGE) and self.size(rel) <= start

    def read_start(self, rel: str, size: int) -> bytes:
        """Return the first `size` bytes of a file, or all of a shorter file, by one request.

        Raises:
            FileNotFoundError: the file is missing.
        """
        return self.read_range(rel, 0, size)

    @with_clear_errors
    def read_ranges(self, rel: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return several ranges of a file, each (start, bytes); from a bucket many at once.

        As `read_range`, but the time is about that of one request instead of the sum of all.
        """
        if self.is_local or len(ranges) < 2:
            return [self.read_range(rel, start, size) for start, size in ranges]
        contents = self.fs.cat_ranges(
            [self.path(rel)] * len(ranges),
            [start for start, _ in ranges],
            [start + size for start, size in ranges],
            on_error="return",
        )
        for at, (content, (start, _)) in enumerate(zip(contents, ranges, strict=True)):
            if isinstance(content, Exception):
                if not self._is_past_the_end(content, rel, start):
                    raise content
                contents[at] = b""
        return [bytes(content) for content in contents]

    @with_clear_errors
    def write_bytes(self, rel: str, content: bytes) -> None:
        """Write the file so that a reader sees the old or the new file, never a part."""
        if not self.is_local:
            self.fs.pipe_file(self.path(rel), content)
            return
        temporary = self.scratch(rel)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path(rel))
        finally:
            temporary.unlink(missing_ok=True)

    @with_clear_errors
    def create(self, rel: str, content: bytes) -> bool:
        """Write the file only if it is absent; return whether this call wrote it.

        Args:
            rel: the file.
            content: bytes that only this writer would write: by them it recognises its own file
                when the answer to a first attempt was lost and the second met the file there.

        Returns:
            Whether the file is of this writer.
        """
        for _ in range(TRIES):
            try:
                self._create(rel, content)
            except OSError as error:
                error_codes = codes(error)
                if "ConditionalRequestConflict" in error_codes:  # S3 could not decide
                    continue
                # Stores other than Amazon's leave out which condition it was that failed.
                if not error_codes & {"FileExistsError", "PreconditionFailed", "412"}:
                    raise
                return self.read_bytes(rel) == content
            return True
        return False

    def _create(self, rel: str, content: bytes) -> None:
        if self.is_local:
            Path(self.path(rel)).parent.mkdir(parents=True, exist_ok=True)
            temporary = self.scratch(rel)
            try:
                temporary.write_bytes(content)
                os.link(temporary, self.path(rel))  # fails if it is there, and appears whole
            finally:
                temporary.unlink(missing_ok=True)
        else:
            self.fs.pipe_file(self.path(rel), content, mode="create")

    def scratch(self, rel: str) -> Path:
        """Return a new unique local path for a file that `publish` moves to its final place.

        Beside the final one in a local lake, in the system's temporary folder for a bucket.
        """
        name = f".{rel.rpartition('/')[2]}.{secrets.token_hex(4)}.tmp"
        if not self.is_local:
            return Path(tempfile.gettempdir(), f"slidelake{name}")
        final = Path(self.path(rel))
        final.parent.mkdir(parents=True, exist_ok=True)
        return final.with_name(name)

    @with_clear_errors
    def publish(self, local: Path, rel: str) -> None:
        """Move a finished local file to its final name, where it appears whole."""
        if self.is_local:
            Path(self.path(rel)).parent.mkdir(parents=True, exist_ok=True)
            local.replace(self.path(rel))
            return
        parts = {} if self._protocol == "az" else {"chunksize": PART_BYTES}
        self.fs.put_file(str(local), self.path(rel), **parts)
        local.unlink()

    @with_clear_errors
    def fetch(self, rel: str, local: Path) -> None:
        """Copy a file to this machine's disk; from S3 by one request, whatever its size."""
        self.fs.get_file(self.path(rel), str(local), **self._one_request)

    @with_clear_errors
    def remove(self, rel_paths: Sequence[str]) -> None:
        """Delete files, many at once; skip missing files."""
        if self._protocol == "s3":
            for start in range(0, len(rel_paths), DELETED_AT_ONCE):
                self._delete_objects(rel_paths[start : start + DELETED_AT_ONCE])
        elif self.is_local:
            for rel in rel_paths:
                Path(self.path(rel)).unlink(missing_ok=True)
        else:
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(self._remove_one, rel_paths))

    def _remove_one(self, rel: str) -> None:
        try:
            self.fs.rm_file(self.path(rel))
        except FileNotFoundError as error:
            self._check_bucket(error)

    def _delete_objects(self, rel_paths: Sequence[str]) -> None:
        bucket, _, prefix = self.path("").partition("/")
        keys = [{"Key": f"{prefix}/{rel}".lstrip("/")} for rel in rel_paths]
        done = self.fs.call_s3(
            "delete_objects", Bucket=bucket, Delete={"Objects": keys, "Quiet": True}
        )
        if failed := done.get("Errors"):
            msg = (
                f"{self.uri}: {counted(len(failed), 'file')} can't be deleted "
                f"({failed[0].get('Code')})"
            )
            raise LakeError(msg)


def _local(text: str) -> Path:
    if not text.startswith("file://"):
        return Path(text)
    host, slash, rest = text.removeprefix("file://").partition("/")
    if host not in {"", "localhost"} or not slash:
        msg = f"{text} names no file of this machine; write file:///folder/lake or /folder/lake"
        raise LakeError(msg)
    return Path("/" + unquote(rest))


def _scan(folder: str) -> Iterator[dict[str, Any]]:
    """Yield the entries that fsspec would list; skip files that vanish meanwhile."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat()
                kind = "directory" if entry.is_dir() else "file"
                yield {
                    "name": entry.path,
                    "type": kind,
                    "size": status.st_size,
                    "mtime": status.st_mtime,
                }


def _name(path: object) -> str:
    return str(path).rstrip("/").rpartition("/")[2]


def _modified(entry: dict[str, Any]) -> float:
    modified = next(entry[name] for name in MODIFIED if name in entry)
    return float(modified if isinstance(modified, (int, float)) else modified.timestamp())
