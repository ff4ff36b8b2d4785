"""The files by which tables are read, their checksums, and tables that fell behind a commit.

Features have a checksum for each slide in the catalog, so of a features table only the manifest,
deletions and indexes are listed; of `slides` and `catalog`, which hold these checksums, all files.
"""

import json
from collections.abc import Collection, Iterator, Sequence

import lance

from featurestore.config import LakeConfig
from featurestore.errors import BucketError, DamageError, LakeError
from featurestore.roots.roots_file import (
    LAKE_FILE,
    TAGS,
    Roots,
    check_once,
    damaged_files,
    file_crc32,
    readable_roots,
    write_roots,
)
from featurestore.storage.side_by_side import side_by_side
from featurestore.storage.store import Store
from featurestore.tables.lance_tables import open_table
from featurestore.tables.schema import CATALOG, SLIDES, features_table

LAST_VERSION = 2**64 - 1  # manifests are named by what is left to it: the newest comes first
WHOLE_TABLES = (CATALOG, SLIDES)
KIND_OF_DELETIONS = {"array": "arrow", "bitmap": "bin"}
INDEXES = "_indices/"


def manifest_path(store: Store, rel: str, version: int) -> str:
    """Return the path of a version's manifest, by either of Lance's two ways to name it."""
    path = _long_manifest(rel, version)
    old = f"{rel}/_versions/{version}.manifest"
    return old if not store.exists(path) and store.exists(old) else path


def table_files(
    store: Store, rel: str, table: lance.LanceDataset, read_paths: Collection[str] = ()
) -> Iterator[str]:
    """Yield the paths of the files by which a version of a table is read, its manifest first.

    Args:
        store: the lake's files.
        rel: path of the table.
        table: the table, open at the version.
        read_paths: paths that were read through before: what follows from them is not asked of the
            store. All manifests of a table are named in one way, and the files of an index, in a
            folder of its own, never change.
    """
    folder, length = f"{rel}/_versions/", len(_long_manifest(rel, 1))
    if any(path.startswith(folder) and len(path) == length for path in read_paths):
        yield _long_manifest(rel, table.version)
    else:
        yield manifest_path(store, rel, table.version)
    for fragment in table.get_fragments():
        metadata = fragment.metadata
        if rel in WHOLE_TABLES:
            yield from (f"{rel}/data/{file.path}" for file in metadata.files)
        if metadata.deletion_file:
            gone = metadata.to_json()["deletion_file"]
            kind = KIND_OF_DELETIONS[gone["file_type"]]
            name = f"{metadata.id}-{gone['read_version']}-{gone['id']}.{kind}"
            yield f"{rel}/_deletions/{name}"
    yield from index_files(store, rel, table, read_paths)


def _long_manifest(rel: str, version: int) -> str:
    return f"{rel}/_versions/{LAST_VERSION - version:020d}.manifest"


def lake_tables(config: LakeConfig) -> list[str]:
    """Return the paths of all tables of a lake, the catalog last, as they are committed."""
    return [SLIDES, *(features_table(mpp) for mpp in config.mpps), CATALOG]


def record_roots(
    store: Store, config: LakeConfig, *, new: bool = False, last: Roots | None = None
) -> Roots:
    """Record the files by which the newest tables are read; the caller holds the lock.

    Files that are older than any checksum get none here: `add_checksums` adds them.

    Args:
        store: the lake's files.
        config: settings of the lake.
        new: whether the lake was just created, so that all of its files are whole.
        last: contents of `roots.json`, if the caller has read or written it under this lock.
    """
    last_roots = None if new else last or readable_roots(store)
    before = last_roots or Roots(tables={})
    recorded = {**before.older, **before.files}
    read_paths = {*recorded, *before.unchecked}
    if new:  # its manifests are named in the way of today
        read_paths = {_long_manifest(rel, 1) for rel in lake_tables(config)}
    tables = {rel: open_table(store, rel) for rel in lake_tables(config)}
    paths = [
        path for rel, table in tables.items() for path in table_files(store, rel, table, read_paths)
    ]
    doubtful = set(before.unchecked)
    if last_roots is None and not new:
        doubtful = {path for path in paths if "/_versions/" not in path}
    checked = [path for path in paths if path not in doubtful]
    fresh = _checksums(store, [path for path in checked if path not in recorded])
    files = {path: recorded.get(path) or fresh[path] for path in checked}
    # A snapshot may be deleted; `lake.json` may only be lost, and then its copy is the last one.
    snapshots = [] if new else [f"{TAGS}/{name}" for name in store.names(TAGS)]
    texts = {
        path: text for path, text in before.texts.items() if path == LAKE_FILE or path in snapshots
    }
    if new:
        texts[LAKE_FILE] = config.to_json().decode()
    for path in snapshots:
        if path not in texts:
            texts[path] = store.read_bytes(path).decode(errors="replace")
    roots = Roots(
        tables={rel: int(table.version) for rel, table in tables.items()},
        files=files,
        older=_older_indexes(store, recorded, files),
        unchecked=sorted(doubtful & set(paths)),
        lost=before.lost,
        texts=texts,
    )
    write_roots(store, roots)
    return roots


def _checksums(store: Store, paths: Sequence[str]) -> dict[str, list[int]]:
    """Return size and CRC-32 of files by path."""
    sums = side_by_side(store, lambda path: list(file_crc32(store, path)), paths)
    return dict(zip(paths, sums, strict=True))


def _older_indexes(
    store: Store, recorded: dict[str, list[int]], files: Collection[str]
) -> dict[str, list[int]]:
    """Return the checksums of indexes of earlier versions that are still there.

    `--at` and a restore read by them.
    """
    older = sorted(path for path in recorded if f"/{INDEXES}" in path and path not in files)
    folders = {f"{path.partition(f'/{INDEXES}')[0]}/{INDEXES}".rstrip("/") for path in older}
    existing = {file.path for folder in sorted(folders) for file in store.walk(folder)}
    return {path: recorded[path] for path in older if path in existing}


# ---------------------------------------------------------------------- tables that fell back


def newest_known(store: Store, rel: str, roots: Roots | None) -> int:
    """Return the newest version of a table that something beside its manifests names; 0 if none.

    Lance's own hint is used where the lake has no `roots.json`; it may lag, and is never ahead.
    """
    if roots is not None:
        return roots.tables.get(rel, 0)
    try:
        hint = json.loads(store.read_bytes(f"{rel}/_versions/latest_version_hint.json"))
        return int(hint["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def check_newest(store: Store, rel: str, version: int, roots: Roots | None) -> None:
    """Raise DamageError if a table opens at an older version than was committed to it."""
    newest = newest_known(store, rel, roots)
    if version < newest:
        msg = (
            f"version {newest} of {store.shown(rel)} was committed, but the table opens at "
            f"{version}: its newest manifest is lost; `slidelake verify` shows which versions are "
            f"whole, `--at VERSION` reads one, `slidelake restore` goes back to it"
        )
        raise DamageError(msg)


def check_versions(
    store: Store,
    newest: dict[str, lance.LanceDataset],
    named: dict[str, int],
    roots: Roots | None,
) -> None:
    """Raise DamageError if a table can't be built on.

    Args:
        store: the lake's files.
        newest: the tables at the newest versions that can be opened.
        named: versions that the catalog names.
        roots: contents of `roots.json`, if it is there.
    """
    for rel, table in newest.items():
        check_newest(store, rel, table.version, roots)
        check_not_lost(store, rel, named.get(rel, table.version), roots)
        check_newest(store, rel, table.version, Roots(tables=named))
        if roots is not None and rel in WHOLE_TABLES and store.is_local:
            check_once(store, roots, _recorded_indexes(rel, table, roots))


def index_files(
    store: Store, rel: str, table: lance.LanceDataset, read_paths: Collection[str] = ()
) -> Iterator[str]:
    """Yield the files of a version's indexes that are there; `read_paths` as in `table_files`."""
    for folder in _index_folders(rel, table):
        files = sorted(path for path in read_paths if path.startswith(f"{folder}/"))
        yield from files or (f"{folder}/{name}" for name in store.names(folder))


def _index_folders(rel: str, table: lance.LanceDataset) -> list[str]:
    indexes = table.describe_indices()
    return [f"{rel}/{INDEXES}{part.uuid}" for index in indexes for part in index.segments]


def _recorded_indexes(rel: str, table: lance.LanceDataset, roots: Roots) -> list[str]:
    folders = set(_index_folders(rel, table))
    return [path for path in roots.recorded if path.rpartition("/")[0] in folders]


def damaged_indexes(store: Store, rel: str) -> dict[str, str]:
    """Return what is wrong with files of the newest version's indexes, by path."""
    roots = readable_roots(store) or Roots(tables={})
    return damaged_files(store, roots, _recorded_indexes(rel, open_table(store, rel), roots))


def open_checked(
    store: Store,
    rel: str,
    version: int,
    roots: Roots | None,
    session: lance.Session | None = None,
) -> lance.LanceDataset:
    """Open a table at the version that the catalog names, by files that are what was written.

    Args:
        store: the lake's files.
        rel: path of the table.
        version: the version.
        roots: contents of `roots.json`, if it is there.
        session: cache that tables share.

    Raises:
        DamageError: the version is lost, or its manifest or an index of it is damaged.
        BucketError: the bucket can't be read.
    """
    if roots is None:
        return _named_version(store, rel, version, session)
    check_not_lost(store, rel, version, roots)
    if store.is_local:
        check_once(store, roots, [manifest_path(store, rel, version)])
    table = _named_version(store, rel, version, session)
    if rel in WHOLE_TABLES and store.is_local:
        check_once(store, roots, _recorded_indexes(rel, table, roots))
    return table


def check_not_lost(store: Store, rel: str, version: int, roots: Roots | None) -> None:
    """Raise DamageError if a version is only a stand-in for a lost version."""
    if roots is not None and version in roots.lost.get(rel, []):
        msg = (
            f"version {version} of {store.shown(rel)} was lost: `slidelake restore` goes back to a "
            "whole version, which `slidelake verify` names"
        )
        raise DamageError(msg)


def newest_catalog(
    store: Store, roots: Roots | None, session: lance.Session | None = None
) -> lance.LanceDataset:
    """Open the newest version of the catalog; `session` is a cache that tables share.

    Raises:
        DamageError: the catalog is damaged, or older than the last commit.
    """
    if roots is not None and store.is_local:
        check_once(store, roots, [manifest_path(store, CATALOG, roots.tables[CATALOG])])
    catalog = open_table(store, CATALOG, session=session)
    check_newest(store, CATALOG, catalog.version, roots)
    if roots is None:
        return catalog
    if not store.is_local:  # what it was opened by is not compared there
        check_not_lost(store, CATALOG, catalog.version, roots)
        return catalog
    return open_checked(store, CATALOG, catalog.version, roots)


def _named_version(
    store: Store, rel: str, version: int, session: lance.Session | None
) -> lance.LanceDataset:
    try:
        return open_table(store, rel, version, session=session)
    except (BucketError, DamageError):
        raise
    except LakeError as error:
        if rel == CATALOG:
            raise
        msg = (
            f"{error}: the catalog names that version, so its manifest is lost; `slidelake verify` "
            "says which versions are whole"
        )
        raise DamageError(msg) from error
