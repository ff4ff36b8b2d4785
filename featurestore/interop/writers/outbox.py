"""A folder that an export fills: each file appears whole or not at all.

Everything is written under a hidden folder beside the results first and then renamed, so a kill
leaves nothing half done but this folder, which the next export empties. One export at a time.
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from featurestore.interop.foreign_slide import InteropError

STAGING = ".slidelake-export"


class Outbox:
    """Writes into `root`, whole file by whole file. Use it as a context manager.

    Args:
        root: a local folder; it is created if it is missing.
        shows_paths: whether files may name the folder that they lie in.

    Raises:
        InteropError: `root` is a URL, or another export is writing to it.
    """

    def __init__(self, root: str | os.PathLike[str], *, shows_paths: bool = True) -> None:
        if "://" in os.fspath(root):
            msg = (
                f"{os.fspath(root)} is a URL; exports are written to a local folder, but for those "
                "of the format hub"
            )
            raise InteropError(msg)
        self.root = Path(root).expanduser().absolute()
        self._shows_paths = shows_paths
        self._staging = self.root / STAGING

    def __enter__(self) -> Self:
        self._staging.mkdir(parents=True, exist_ok=True)
        self._lock = (self._staging / "lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            msg = f"another export is writing to {self.root}; wait for it, or give another folder"
            raise InteropError(msg) from error
        for left in self._staging.iterdir():
            if left.name != "lock":
                _remove(left)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._staging, ignore_errors=True)
        self._lock.close()

    def path(self, rel: str) -> Path:
        """Return the path of an exported file or folder, which may not be there yet."""
        return self.root / rel

    def shown_path(self, rel: str) -> str:
        """Return a path to be written into a file: whole, or relative to the exported folder."""
        return str(self.path(rel)) if self._shows_paths else rel

    @contextlib.contextmanager
    def file(self, rel: str) -> Iterator[Path]:
        """Yield a temporary path that becomes the file `rel` if the block ends without an error."""
        final, temporary = self.path(rel), self._scratch()
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            final.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)

    def read_text(self, rel: str) -> str | None:
        """Return the text of an exported file; None if it is not there."""
        return self.path(rel).read_text() if self.path(rel).is_file() else None

    def text_sha256(self, rel: str) -> str | None:
        """Return the SHA-256 of a text file; None if it is not there."""
        text = self.read_text(rel)
        return None if text is None else hashlib.sha256(text.encode()).hexdigest()

    def holds(self, rel: str, size: int, sha256: str) -> bool:
        """Whether a file is there with these bytes."""
        path = self.path(rel)
        if not path.is_file() or path.stat().st_size != size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256

    def write_text(self, rel: str, text: str) -> bool:
        """Write a small file, unless it is there and the same; return whether it was written."""
        if self.read_text(rel) == text:
            return False
        with self.file(rel) as path:
            path.write_text(text)
        return True

    @contextlib.contextmanager
    def folder(self, rel: str) -> Iterator[Path]:
        """Yield a temporary path that replaces the folder `rel` in the same way."""
        final, temporary, old = self.path(rel), self._scratch(), self._scratch()
        try:
            yield temporary
            final.parent.mkdir(parents=True, exist_ok=True)
            if final.exists():
                final.rename(old)
            temporary.rename(final)
        finally:
            _remove(temporary)
            _remove(old)

    def _scratch(self) -> Path:
        return self._staging / secrets.token_hex(8)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
