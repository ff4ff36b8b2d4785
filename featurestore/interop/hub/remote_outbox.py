"""An exported folder at a URL: files are made on this machine and handed over a few at a time.

A kill loses the files that were not handed over; the next export compares what is there with the
lake and goes on.
"""

import contextlib
import hashlib
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from featurestore.interop.hub.places import ExportPlace

BYTES_AT_ONCE = 1 << 30


class RemoteOutbox:
    """Writes whole files to a place, as `Outbox` does to a folder. Use it as a context manager.

    Args:
        place: the folder at a URL.
    """

    def __init__(self, place: ExportPlace) -> None:
        self._place = place
        self._queue: dict[str, Path] = {}
        self._hashes: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="slidelake-export-")
        try:
            self._sizes = self._place.sizes()
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.hand_over()
        finally:
            self._folder.cleanup()

    @contextlib.contextmanager
    def file(self, rel: str) -> Iterator[Path]:
        """Yield a temporary path whose file becomes `rel` if the block ends without an error."""
        temporary = Path(self._folder.name) / secrets.token_hex(8)
        try:
            yield temporary
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if (earlier := self._queue.pop(rel, None)) is not None:
            earlier.unlink()
        self._queue[rel] = temporary
        self._sizes[rel] = temporary.stat().st_size
        waiting = sum(path.stat().st_size for path in self._queue.values())
        if len(self._queue) >= self._place.files_at_once or waiting > BYTES_AT_ONCE:
            self.hand_over()

    def hand_over(self) -> None:
        """Write the files that wait, in the order in which they were made."""
        if self._queue:
            self._place.publish([(path, rel) for rel, path in self._queue.items()])
        for path in self._queue.values():
            path.unlink(missing_ok=True)
        self._queue.clear()

    def read_text(self, rel: str) -> str | None:
        """Return the text of an exported file; None if it is not there."""
        if rel in self._queue:
            return self._queue[rel].read_text()
        if rel not in self._sizes:
            return None
        text = self._place.read(rel).decode()
        self._hashes[rel] = hashlib.sha256(text.encode()).hexdigest()
        return text

    def text_sha256(self, rel: str) -> str | None:
        """Return the SHA-256 of a text file; None if it is not there."""
        if rel not in self._hashes:
            self.read_text(rel)
        return self._hashes.get(rel)

    def holds(self, rel: str, size: int, sha256: str) -> bool:
        """Whether a file is there whole: one in the place by its size, as it was written whole."""
        if rel in self._queue:
            return hashlib.sha256(self._queue[rel].read_bytes()).hexdigest() == sha256
        return self._sizes.get(rel) == size

    def write_text(self, rel: str, text: str) -> bool:
        """Write a small file, unless it is there and the same; return whether it was written."""
        if self.read_text(rel) == text:
            return False
        with self.file(rel) as path:
            path.write_text(text)
        self._hashes[rel] = hashlib.sha256(text.encode()).hexdigest()
        return True
