"""A copy of a whole lake while jobs write to it: one version, snapshots and runs' versions.

The version is chosen first; then the files that it names are copied, which no job changes, and a
vacuum waits. `lake.json` comes last: until then the copy is no lake.
"""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurestore.commits.lance_ledger import lake_versions, root_versions
from featurestore.config import LakeConfig
from featurestore.errors import DamageError, LakeError
from featurestore.keep.copied_files import copy_files, missing_files
from featurestore.keep.lance_kept_annotations import named_tables
from featurestore.keep.lance_vacuum import kept_versions, named_shards
from featurestore.lake import Lake
from featurestore.messages import counted
from featurestore.notebook.shown import Shown
from featurestore.opening import open_lake
from featurestore.roots.lance_roots import record_roots, table_files
from featurestore.roots.roots_file import LAKE_FILE, ROOTS_FILE, readable_roots, write_roots
from featurestore.storage.lock import LOCK_FILE, writer_lease
from featurestore.storage.store import FileInfo, Store
from featurestore.storage.user_files import bucket_errors_explained
from featurestore.tables.column_parts import PARTS
from featurestore.tables.lance_tables import open_table
from featurestore.tables.schema import CATALOG, SLIDES

MARK = "copy.json"
# What is no part of a lake's content, or is written for the copy itself.
LEFT_OUT = (LOCK_FILE, LAKE_FILE, ROOTS_FILE, MARK)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, repr=False)
class Copied(Shown):
    """Result of copying a lake.

    Attributes:
        uri: folder or URL of the copy.
        version: the copied version, which is the newest version of the copy.
        versions: all versions that can be read there.
        files: number of its files.
        bytes: size of its files.
        copied: files that were copied now; the others were there already.
    """

    uri: str
    version: int
    versions: list[int]
    files: int
    bytes: int
    copied: int


def copy_lake(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    version: int | str | None = None,
    on_plan: Callable[[int], None] = lambda _: None,
    on_file: Callable[[int], None] = lambda _: None,
) -> Copied:
    """Copy a lake, local or in a bucket, while jobs write to it.

    The next call continues a stopped copy. In the end the copy is opened at
    its version and compared with the lake.

    Args:
        source: folder or URL of the lake.
        target: folder or URL of the copy; nothing is there yet, or a copy that was stopped.
        version: number or snapshot to be the newest version of the copy; the lake's newest if None.
        on_plan: called once with the number of files that are still to be copied.
        on_file: called with the size of each file that was copied.

    Raises:
        LakeError: something else is at the target, or it is the lake or inside it.
        DamageError: a file that the version names is not there.

    Examples:
        >>> copied = sl.copy_lake("my-lake", "new-lake")
        >>> sl.open_lake("new-lake").version == copied.version
        True
    """
    lake, to = open_lake(source, version=version), Store(target)
    if lake.store.uri == to.uri:
        msg = f"{to.uri} is the lake itself; give another folder or URL to copy it to"
        raise LakeError(msg)
    if to.uri.startswith(f"{lake.store.uri.rstrip('/')}/"):
        msg = f"{to.uri} is inside the lake {lake.store.uri}; give a folder or URL outside it"
        raise LakeError(msg)
    pinned = _version_to_resume(lake, to, version)
    lake = lake if pinned is None else open_lake(source, version=pinned)
    with _vacuum_prevented(lake), bucket_errors_explained(lake.store.uri):
        to.fs.makedirs(to.root, exist_ok=True)
        to.write_bytes(MARK, json.dumps({"of": lake.uri, "version": lake.version}).encode())
        files = _files_to_copy(lake)
        target_files = {
            file.path: file for file in to.walk() if not file.path.startswith("leases/")
        }
        files_to_copy = list(missing_files(files, target_files))
        on_plan(len(files_to_copy))
        copied = copy_files(lake.store, to, iter(files_to_copy), on_file)
        to.remove([path for path in target_files if path not in files and path not in LEFT_OUT])
        _write_roots(lake, to)
        to.write_bytes(LAKE_FILE, lake.store.read_bytes(LAKE_FILE))
    return _checked_copy(lake, to, files, copied)


def _version_to_resume(lake: Lake, to: Store, version: int | str | None) -> int | None:
    """Return the version of an unfinished copy that can be continued; None to begin anew.

    Raises:
        LakeError: something else is at the target, or it is the lake or inside it.
    """
    mark = _copy_mark(to)
    if mark is None:
        if to.names(""):
            state = "a lake" if to.exists(LAKE_FILE) else "not empty"
            msg = f"{to.uri} is {state} already; give a folder or URL where nothing is yet"
            raise LakeError(msg)
        return None
    if mark.get("of") != lake.uri or (version is not None and mark.get("version") != lake.version):
        msg = (
            f"{to.uri} holds an unfinished copy of version {mark.get('version')} of "
            f"{mark.get('of')}; go on with that one, or delete the folder"
        )
        raise LakeError(msg)
    pinned = mark.get("version")
    versions = lake_versions(open_table(lake.store, CATALOG))
    return pinned if pinned in versions else None


def _copy_mark(to: Store) -> dict[str, Any] | None:
    try:
        mark = json.loads(to.read_bytes(MARK))
    except FileNotFoundError:
        return None
    except ValueError as error:
        if isinstance(error, LakeError):  # the bucket does not answer
            raise
        return {}
    return mark if isinstance(mark, dict) else {}


@contextlib.contextmanager
def _vacuum_prevented(lake: Lake) -> Iterator[None]:
    """Keep a vacuum from removing files during the copy; a read-only lake has no vacuum."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(writer_lease(lake.store, "copy"))
        except (LakeError, OSError) as error:
            log.warning("%s is copied without a lease (%s): do not vacuum it now", lake.uri, error)
        yield


# ---------------------------------------------------------------------- which files


def _files_to_copy(lake: Lake) -> dict[str, FileInfo]:
    """Return the files that the copy needs, as they are in the lake.

    Raises:
        DamageError: a file is missing.
    """
    needed = set(_named_files(lake))
    files = {}
    for folder in lake.store.names(""):
        if folder in LEFT_OUT or folder in ("leases", PARTS):
            continue
        for file in _files_below(lake.store, folder):
            if file.path in needed or _is_beside(file.path):
                files[file.path] = file
    lost = sorted(needed - set(files))
    if lost:
        msg = (
            f"{lake.uri}: {counted(len(lost), 'file', 'are')} missing that version "
            f"{lake.version} names, as "
            f"{lost[0]}; `slidelake verify` shows what is whole"
        )
        raise DamageError(msg)
    return files


def _files_below(store: Store, name: str) -> Iterator[FileInfo]:
    """Yield a file, or all files below a folder."""
    empty = True
    for file in store.walk(name):
        empty = False
        yield file
    if empty and not name.endswith(".lance"):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            yield FileInfo(path=name, bytes=store.size(name), modified=_modified(store, name))


def _modified(store: Store, name: str) -> float:
    if store.is_local:
        return Path(store.path(name)).stat().st_mtime
    return float("inf")  # a page or a note at the lake's root: copied again


def _is_beside(path: str) -> bool:
    """Whether a file belongs to no table and no shard, and is not being written right now."""
    scratch = path.rpartition("/")[2].startswith(".") and path.endswith(".tmp")
    return not (path.startswith("tiles/") or ".lance/" in path or scratch)


def _named_files(lake: Lake) -> Iterator[str]:
    """Yield the paths of the files of tables and shards that the copied versions name."""
    versions = _table_versions(lake)
    for rel, numbers in versions.items():
        for number in numbers:
            yield from _version_files(lake.store, rel, number)
        yield from _transactions(lake.store, rel, numbers)
    yield from named_shards(lake, versions[CATALOG])
    for rel in named_tables(lake.store, versions[SLIDES]):
        yield from (file.path for file in lake.store.walk(rel))
    for name, number in lake.snapshots().items():
        if number in versions[CATALOG]:
            yield f"{CATALOG}/_refs/tags/{name}.json"


def _table_versions(lake: Lake) -> dict[str, set[int]]:
    newest = lake.version
    kept = [number for number in kept_versions(lake, [newest]) if number <= newest]
    versions = lake_versions(open_table(lake.store, CATALOG))
    named = [number for number in versions if number <= newest]
    # Versions that are work on an index mean the same as the last one before that names others.
    tables: dict[str, set[int]] = {CATALOG: {*kept, *range(named[-1], newest + 1)}}
    for number in kept:
        for rel, at in root_versions(open_table(lake.store, CATALOG, number)).items():
            tables.setdefault(rel, set()).add(at)
    return tables


def _version_files(store: Store, rel: str, version: int) -> Iterator[str]:
    table = open_table(store, rel, version)
    yield from (path for path in table_files(store, rel, table) if "/_refs/" not in path)
    for fragment in table.get_fragments():
        yield from (f"{rel}/data/{file.path}" for file in fragment.metadata.files)


def _transactions(store: Store, rel: str, versions: set[int]) -> Iterator[str]:
    """Yield the transaction files of versions; each is named by the version before its own."""
    folder = f"{rel}/_transactions"
    for name in store.names(folder):
        number = name.partition("-")[0]
        if number.isdecimal() and int(number) + 1 in versions:
            yield f"{folder}/{name}"


# ---------------------------------------------------------------------- the end of a copy


def _write_roots(lake: Lake, to: Store) -> None:
    """Write the copy's `roots.json`, with the checksums that the lake has of its files."""
    config = LakeConfig.from_json(lake.store.read_bytes(LAKE_FILE), uri=lake.uri)
    if roots := readable_roots(lake.store):
        write_roots(to, roots)
    else:
        to.remove([ROOTS_FILE])
    record_roots(to, config)


def _checked_copy(lake: Lake, to: Store, files: dict[str, FileInfo], copied: int) -> Copied:
    """Open the copy, compare it with the lake and return its description."""
    copy = open_lake(to.uri)
    target_bytes = {file.path: file.bytes for file in to.walk()}
    wrong = [path for path, file in files.items() if target_bytes.get(path) != file.bytes]
    wrong = [path for path in wrong if path.startswith("tiles/") or ".lance/" in path]
    if copy.version != lake.version or copy.info()["tiles"] != lake.info()["tiles"] or wrong:
        msg = f"{to.uri} is not what {lake.uri} is at version {lake.version}: copy it again"
        raise DamageError(msg)
    to.remove([MARK])
    return Copied(
        uri=to.uri,
        version=copy.version,
        versions=lake_versions(copy.table(CATALOG)),
        files=len(files) + 2,
        bytes=sum(file.bytes for file in files.values()),
        copied=copied,
    )
