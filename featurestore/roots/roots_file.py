"""`roots.json`: the least versions of a lake's tables, written after each commit of the catalog.

The catalog vouches for every slide's rows and shards; this file vouches for the catalog itself: the
newest version of each table, and size and CRC-32 of the files by which tables are read. A kill
between the catalog and this file leaves it one version behind, which is no damage; lakes of
earlier versions have none.
"""

import functools
import json
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from featurestore.errors import DamageError
from featurestore.storage.read_errors import meaning_of, reason_of
from featurestore.storage.store import Store

ROOTS_FILE = "roots.json"
LAKE_FILE = "lake.json"
TAGS = "catalog.lance/_refs/tags"
CHUNK_BYTES = 1 << 24
GONE = "is gone"


@dataclass(frozen=True, kw_only=True)
class Roots:
    """Contents of `roots.json`.

    Attributes:
        tables: the newest version of each table at the last commit.
        files: size and CRC-32 by path: manifests, and the other files by which tables are read.
        older: the same for indexes that only earlier versions are read by.
        unchecked: files that were there before checksums of files were kept.
        lost: versions of tables that are stand-ins for versions with lost manifests.
        texts: the text of `lake.json`, which never changes, and of the files of snapshots, by path.
    """

    tables: dict[str, int]
    files: dict[str, list[int]] = field(default_factory=dict)
    older: dict[str, list[int]] = field(default_factory=dict)
    unchecked: list[str] = field(default_factory=list)
    lost: dict[str, list[int]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def recorded(self) -> dict[str, list[int]]:
        """Return (bytes, CRC-32) of all files with a recorded checksum, by path."""
        return {**self.older, **self.files}

    def to_json(self) -> bytes:
        """Return the bytes of `roots.json`, with a checksum of its own."""
        contents = asdict(self)
        return (json.dumps({**contents, "crc32": _crc32_of(contents)}, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """Read `roots.json`.

        Raises:
            DamageError: the content differs from the written file.
        """
        try:
            contents: dict[str, Any] = json.loads(content)
            crc32 = contents.pop("crc32")
            if crc32 == _crc32_of(contents):
                names = {one.name for one in fields(cls)}
                return cls(**{name: contents[name] for name in names & contents.keys()})
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        msg = f"{ROOTS_FILE} is not what was written (checksum)"
        raise DamageError(msg)


def _crc32_of(fields: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(fields, sort_keys=True).encode())


def read_roots(store: Store) -> Roots | None:
    """Read what the last commit wrote; None if the lake has no such file.

    Raises:
        DamageError: the file is not what was written.
        AccessError: the file can't be read now.
    """
    try:
        content = store.read_bytes(ROOTS_FILE)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise meaning_of(error, store, f"{ROOTS_FILE} can't be read") from error
    return Roots.from_json(content)


def readable_roots(store: Store) -> Roots | None:
    """Read what the last commit wrote; None if there is no such file or it is damaged."""
    try:
        return read_roots(store)
    except DamageError:
        return None


def write_roots(store: Store, roots: Roots) -> None:
    """Write the file; the caller holds the lake's lock."""
    store.write_bytes(ROOTS_FILE, roots.to_json())


def file_crc32(store: Store, path: str) -> tuple[int, int]:
    """Return the size in bytes and the CRC-32 of a file, read in pieces.

    Raises:
        FileNotFoundError: the file is missing.
    """
    content = store.read_start(path, CHUNK_BYTES)
    size, crc = len(content), zlib.crc32(content)
    if size == CHUNK_BYTES:  # there may be more: most files are shorter, and need no other request
        size = store.size(path)
        for start in range(CHUNK_BYTES, size, CHUNK_BYTES):
            crc = zlib.crc32(store.read_range(path, start, CHUNK_BYTES), crc)
    return size, crc


def damaged_files(store: Store, roots: Roots, paths: Iterable[str]) -> dict[str, str]:
    """Compare files with their checksums; return what is wrong, by path. Others are passed over."""
    wrong, recorded = {}, roots.recorded
    for path in paths:
        if path in recorded and (text := _fault_of(store, path, *recorded[path])):
            wrong[path] = text
    return wrong


def _fault_of(store: Store, path: str, size: int, crc32: int) -> str:
    try:
        now = file_crc32(store, path)
    except FileNotFoundError:
        return GONE
    except OSError as error:
        if explanation := store.explained(error):
            raise explanation from error
        return f"can't be read ({reason_of(error)})"
    if now[0] != size:
        return f"has {now[0]} bytes, {size} were written"
    return "" if now[1] == crc32 else "is not what was written (checksum)"


@functools.lru_cache(maxsize=1024)
def _check(uri: str, path: str, size: int, crc32: int) -> None:
    """Raise DamageError if a file is not what was written; only what is whole is remembered."""
    store = Store(uri)
    if text := _fault_of(store, path, size, crc32):
        msg = f"{store.path(path)} {text}; `slidelake verify` shows what to do"
        raise DamageError(msg)


def check_once(store: Store, roots: Roots, paths: Iterable[str]) -> None:
    """Compare files with their checksums before a table is read through them, once a process.

    In a bucket nothing is compared: a store there checks what it keeps, and each file would travel.

    Raises:
        DamageError: a file is damaged or gone.
    """
    if not store.is_local:
        return
    recorded = roots.recorded
    for path in paths:
        if path in recorded:
            _check(store.uri, path, *recorded[path])
