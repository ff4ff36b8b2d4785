"""Folders at any URL that fsspec knows: what an export is written to and an import reads from.

Local folders and buckets are those of `Store`, with its clear errors and its attempts. A data set
on the Hugging Face hub takes many files in one commit: each commit is a revision, and the hub
limits their number an hour.
"""

import contextlib
import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import fsspec

from featurestore.interop.foreign_slide import InteropError
from featurestore.messages import counted
from featurestore.storage import WEB, protocol_of, shown, shown_text
from featurestore.storage.store import Store

STORES = ("", "file", "s3", "gs", "az")
HF = "hf"


class PlaceError(InteropError):
    """Raised where a place can't be used at all, so that an export or import ends.

    Examples:
        >>> issubclass(sl.PlaceError, sl.LakeError)
        True
    """


class ExportPlace(Protocol):
    """A folder of files by relative paths.

    Attributes:
        url: the folder, for messages.
        files_at_once: number of files that are best handed over together.
    """

    url: str
    files_at_once: int

    def read(self, rel: str) -> bytes:
        """Return a file. Raises FileNotFoundError if it is not there."""

    def sizes(self) -> dict[str, int]:
        """Return the size of each file below the folder, in bytes, by its path."""

    def publish(self, files: Sequence[tuple[Path, str]]) -> None:
        """Write local files to relative paths, where each appears whole."""


def open_place(url: str | os.PathLike[str]) -> ExportPlace:
    """Return a folder by its path or URL.

    Raises:
        PlaceError: fsspec has no file system for the URL, or its package is not installed.
    """
    text = os.fspath(url)
    protocol = text.partition("://")[0] if "://" in text else ""
    if protocol in STORES:
        return StorePlace(Path(text).expanduser().absolute() if not protocol else text)
    if protocol == HF:
        return HubPlace(text)
    return UrlPlace(text)


class StorePlace:
    """A local folder, or a folder of a bucket.

    Args:
        url: path or URL of the folder.
    """

    files_at_once = 1

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self._store = Store(url)
        self.url = self._store.uri

    def read(self, rel: str) -> bytes:
        """Return a file. Raises FileNotFoundError if it is not there."""
        return self._store.read_bytes(rel)

    def sizes(self) -> dict[str, int]:
        """Return the size of each file below the folder, in bytes, by its path."""
        return {file.path: file.bytes for file in self._store.walk()}

    def publish(self, files: Sequence[tuple[Path, str]]) -> None:
        """Write local files to relative paths, where each appears whole."""
        for local, rel in files:
            self._store.publish(local, rel)


class UrlPlace:
    """A folder at a URL of any other file system of fsspec, as `http://`, `sftp://`, `memory://`.

    Args:
        url: URL of the folder.

    Raises:
        PlaceError: fsspec has no such file system, or its package is not installed.
    """

    files_at_once = 1

    def __init__(self, url: str) -> None:
        self.url = shown(url).rstrip("/")  # messages and imported lakes hold it
        self.protocol = protocol_of(url)
        with self._clear_errors():
            self.fs, root = fsspec.core.url_to_fs(url.rstrip("/"))
        self._root = str(root).rstrip("/")

    def read(self, rel: str) -> bytes:
        """Return a file. Raises FileNotFoundError if it is not there."""
        with self._clear_errors():
            return bytes(self.fs.cat_file(self._path(rel)))

    def sizes(self) -> dict[str, int]:
        """Return the size of each file below the folder, in bytes, by its path.

        Raises:
            PlaceError: the place can only be read, and lists nothing.
        """
        self._check_listing()
        with self._clear_errors():
            self.fs.invalidate_cache()
            try:
                files: dict[str, dict[str, Any]] = self.fs.find(self._root, detail=True)
            except FileNotFoundError:
                return {}
        start = len(self._root) + 1
        return {name[start:]: int(entry["size"]) for name, entry in files.items()}

    def publish(self, files: Sequence[tuple[Path, str]]) -> None:
        """Write local files to relative paths.

        Raises:
            PlaceError: the place refuses the files.
        """
        with self._clear_errors():
            for local, rel in files:
                path = self._path(rel)
                self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                self.fs.put_file(str(local), path)

    def _check_listing(self) -> None:
        if self.protocol in WEB:
            msg = f"{self.url} can only be read; write to s3://, gs://, az://, hf:// or a folder"
            raise PlaceError(msg)

    def _path(self, rel: str) -> str:
        return f"{self._root}/{quote(rel) if self.protocol in WEB else rel}"

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Turn what clients raise into one sentence; a missing file stays one."""
        try:
            yield
        except (FileNotFoundError, PlaceError):
            raise
        except Exception as error:  # each file system of fsspec has errors of its own
            why = " ".join(shown_text(f"{type(error).__name__}: {error}").split())[:200]
            msg = f"{self.url} can't be used: {why}"
            raise PlaceError(msg) from error


class HubPlace(UrlPlace):
    """A data set on the Hugging Face hub, `hf://datasets/NAME/DATASET`, or a folder of it.

    Args:
        url: URL of the data set, perhaps with `@REVISION` after its name, and a folder.

    Raises:
        PlaceError: the URL names no data set.
    """

    files_at_once = 256

    def __init__(self, url: str) -> None:
        if not url.startswith("hf://datasets/"):
            msg = f"{shown(url)} names no data set on the hub; write hf://datasets/NAME/DATASET"
            raise PlaceError(msg)
        super().__init__(url)

    def sizes(self) -> dict[str, int]:
        """Return the size of each file below the folder, in bytes, by its path.

        Raises:
            PlaceError: there is no such data set, or it may not be seen.
        """
        with self._clear_errors():
            self.fs.invalidate_cache()
            try:
                self.fs.resolve_path(self._root)
            except FileNotFoundError as error:
                msg = (
                    f"{self.url}: no such data set, or no right to see it; make it first "
                    "(`hf repo create NAME/DATASET --repo-type dataset`), and give HF_TOKEN"
                )
                raise PlaceError(msg) from error
        return super().sizes()

    def publish(self, files: Sequence[tuple[Path, str]]) -> None:
        """Write local files to the data set in one commit."""
        from huggingface_hub import CommitOperationAdd, HfApi

        with self._clear_errors():
            target = self.fs.resolve_path(self._root)
            folder = f"{target.path_in_repo}/" if target.path_in_repo else ""
            additions = [
                CommitOperationAdd(path_in_repo=f"{folder}{rel}", path_or_fileobj=str(local))
                for local, rel in files
            ]
            with _without_bars():
                HfApi(endpoint=self.fs.endpoint).create_commit(
                    target.repo_id,
                    additions,
                    commit_message=f"slidelake export: {counted(len(additions), 'file')}",
                    repo_type="dataset",
                    revision=target.revision,
                )
            self.fs.invalidate_cache()


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Keep the hub's client from drawing bars of its own for each commit."""
    utils: Any = importlib.import_module("huggingface_hub.utils")
    if utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()
