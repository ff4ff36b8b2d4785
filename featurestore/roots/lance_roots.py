"""The files by which tables are read, their checksums, and tables that fell behind a commit.

Features have a checksum for each slide in the catalog, so of a features table only the manifest,
deletions and indexes are listed; of `slides` and `catalog`, which hold these checksums, all files.
"""

import json
from collections.abc import Iterator

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
from featurestore.storage.store import Store
from featurestore.tables.lance_tables import open_table
from featurestore.tables.schema import CATALOG, SLIDES, features_table

LAST_VERSION = 2**64 - 1  # manifests are named by what is left to it: the newest comes first
WHOLE_TABLES = (CATALOG, SLIDES)
KIND_OF_DELETIONS = {"array": "arrow", "bitmap": "bin"}
INDEXES = "_indices/"


def manifest_path(store: Store, rel: str, version: int) -> str:
    """Return the path of a version's manifest, by either of Lance's two ways to name it."""
    path = f"{rel}/_versions/{LAST_VERSION - version:020d}.manifest"
    old = f"{rel}/_versions/{version}.manifest"
    return old if not store.exists(path) and store.exists(old) else path


def table_files(store: Store, rel: str, table: lance.LanceDataset) -> Iterator[str]:
    """Yield the paths of the files by which a version of a table is read, its manifest first."""
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
    yield from index_files(store, rel, table)


def lake_tables(config: LakeConfig) -> list[str]:
    """Return the paths of all tables of a lake, the catalog last, as they are committed."""
    return [SLIDES, *(features_table(mpp) for mpp in config.mpps), CATALOG]


def record_roots(store: Store, config: LakeConfig, *, new: bool = False) -> Roots:
    """Record the files by which the newest tables are read; the caller holds the lock.

    Files that are older than any checksum get none here: `add_checksums` adds them.

    Args:
        store: the lake's files.
        config: settings of the lake.
        new: whether the lake was just created, so that all of its files are whole.
    """
    tables = {rel: open_table(store, rel) for rel in lake_tables(config)}
    paths = [path for rel, table in tables.items() for path in table_files(store, rel, table)]
    last_roots = readable_roots(store)
    before = last_roots or Roots(tables={})
    versions = {rel: int(table.version) for rel, table in tables.items()}
    manifests = {manifest_path(store, rel, version) for rel, version in versions.items()}
    doubtful = set(before.unchecked)
    if last_roots is None and not new:
        doubtful = set(paths) - manifests
    recorded = {**before.older, **before.files}
    files = {
        path: recorded.get(path) or list(file_crc32(store, path))
        for path in paths
        if path not in doubtful
    }
    # Indexes of earlier versions stay known: `--at` and a restore read by them.
    older_indexes = {path for path in recorded if f"/{INDEXES}" in path} - files.keys()
    older = {path: recorded[path] for path in sorted(older_indexes) if store.exists(path)}
    # A snapshot may be deleted; `lake.json` may only be lost, and then its copy is the last one.
    texts = {
        path: text for path, text in before.texts.items() if path == LAKE_FILE or store.exists(path)
    }
    if new:
        texts[LAKE_FILE] = config.to_json().decode()
    for path in (f"{TAGS}/{name}" for name in store.names(TAGS)):
        texts.setdefault(path, store.read_bytes(path).decode(errors="replace"))
    roots = Roots(
        tables=versions,
        files=files,
        older=older,
        unchecked=sorted(doubtful & set(paths)),
        lost=before.lost,
        texts=texts,
    )
    write_roots(store, roots)
    return roots


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
            f"version {newest} of {store.url(rel)} was committed, but the table opens at "
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
        if roots is not None and rel in WHOLE_TABLES:
            check_once(store, roots, _recorded_indexes(rel, table, roots))


def index_files(store: Store, rel: str, table: lance.LanceDataset) -> Iterator[str]:
    """Yield the files of a version's indexes that are there."""
    for folder in _index_folders(rel, table):
        yield from (f"{folder}/{name}" for name in store.names(folder))


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


def open_checked(store: Store, rel: str, version: int, roots: Roots | None) -> lance.LanceDataset:
    """Open a table at the version that the catalog names, by files that are what was written.

    Raises:
        DamageError: the version is lost, or its manifest or an index of it is damaged.
        BucketError: the bucket can't be read.
    """
    if roots is None:
        return _named_version(store, rel, version)
    check_not_lost(store, rel, version, roots)
    if store.is_local:
        check_once(store, roots, [manifest_path(store, rel, version)])
    table = _named_version(store, rel, version)
    if rel in WHOLE_TABLES:
        check_once(store, roots, _recorded_indexes(rel, table, roots))
    return table


def check_not_lost(store: Store, rel: str, version: int, roots: Roots | None) -> None:
    """Raise DamageError if a version is only a stand-in for a lost version."""
    if roots is not None and version in roots.lost.get(rel, []):
        msg = (
            f"version {version} of {store.url(rel)} was lost: `slidelake restore` goes back to a "
            "whole version, which `slidelake verify` names"
        )
        raise DamageError(msg)


def newest_catalog(store: Store, roots: Roots | None) -> lance.LanceDataset:
    """Open the newest version of the catalog.

    Raises:
        DamageError: the catalog is damaged, or older than the last commit.
    """
    if roots is not None and store.is_local:
        check_once(store, roots, [manifest_path(store, CATALOG, roots.tables[CATALOG])])
    catalog = open_table(store, CATALOG)
    check_newest(store, CATALOG, catalog.version, roots)
    return catalog if roots is None else open_checked(store, CATALOG, catalog.version, roots)


def _named_version(store: Store, rel: str, version: int) -> lance.LanceDataset:
    try:
        return open_table(store, rel, version)
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
