"""Opening a lake at a version, and making one."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from featurestore.commits.lance_ledger import lake_versions, versions_property
from featurestore.config import LakeConfig
from featurestore.errors import BucketError, LakeError
from featurestore.lake import Lake
from featurestore.read.first_reads import FIRST_READ, Check, known_check
from featurestore.roots.lake_settings import is_lake, read_settings
from featurestore.roots.lance_roots import record_roots
from featurestore.roots.roots_file import LAKE_FILE, readable_roots
from featurestore.storage.lock import commit_lock
from featurestore.storage.store import Store
from featurestore.tables.lance_held import held_tables
from featurestore.tables.lance_tables import create_table, make_index, open_table, table_versions
from featurestore.tables.schema import (
    CATALOG,
    CATALOG_SCHEMA,
    INDEX_COLUMNS,
    SLIDES,
    SLIDES_SCHEMA,
    features_table,
    tiles_schema,
)

#: Versions of a table in a new lake: made, indexed.
NEW_TABLE_VERSIONS = 2


def open_lake(
    uri: str | os.PathLike[str],
    *,
    version: int | str | None = None,
    check: Check | None = FIRST_READ,
) -> Lake:
    """Open a lake at a version, at a snapshot, or at its newest version.

    Args:
        uri: folder or URL of the lake.
        version: number of a version or name of a snapshot.
        check: "first-read" compares each slide's tiles, and each teacher's features of them, with
            the catalog's checksums where this lake reads them for the first time (bags, streams,
            statistics, exports), and raises DamageError where they differ. A stream reads all of a
            slide once more for it, and its shard in a local lake, before the first tile of it is
            used. None compares nothing.
            Frames (`lake.tiles`, `lake.features`) and `query` are never compared.

    Raises:
        LakeMissingError: there is none.
        FormatError: the lake was written by a newer slidelake.
        LakeError: the lake has no such version or snapshot, or `check` has another value.

    Examples:
        >>> lake = sl.open_lake("my-lake")
        >>> sl.open_lake("my-lake", version=lake.version - 1).version == lake.version - 1
        True
    """
    check = known_check(check)
    store = Store(uri)
    roots = readable_roots(store)
    config = read_settings(store, roots)
    if version is None:
        return Lake(store, config, None, check, roots=roots)
    if isinstance(version, int) or version.isdecimal():
        return _at_number(store, config, int(version), check)
    snapshots = Lake(store, config).snapshots()
    if version not in snapshots:
        msg = f"{store.uri} has no snapshot '{version}'; it has: {', '.join(snapshots) or 'none'}"
        raise LakeError(msg)
    return _at_number(store, config, snapshots[version], check)


def _at_number(store: Store, config: LakeConfig, version: int, check: Check | None) -> Lake:
    """Open a lake at a version, even if the newest version is unreadable."""
    try:
        return Lake(store, config, version, check)
    except LakeError as error:
        if isinstance(error, BucketError):
            raise
        newest = Lake(store, config)
        if version in _catalog_versions(newest):
            raise
        named = {at: name for name, at in newest.snapshots().items()}
        msg = (
            f"{store.uri} has no version {version} (any more); it has "
            f"{ranges(lake_versions(newest.table(CATALOG)), named)}: vacuum keeps the newest "
            "versions, snapshots, and what runs and statistics were made from"
        )
        raise LakeError(msg) from error


def _catalog_versions(lake: Lake) -> set[int]:
    """Return all versions of a lake's catalog, including versions that changed only an index."""
    return set(table_versions(lake.table(CATALOG)))


def ranges(versions: Sequence[int], names: Mapping[int, str]) -> str:
    """Return version numbers as text, neighbours as a range.

    Args:
        versions: numbers, rising.
        names: snapshots by their version.

    >>> ranges([3, 7, 8, 9], {3: "paper"})
    '3 (paper), 7-9'
    """
    runs: list[list[int]] = []
    for version in versions:
        if runs and runs[-1][-1] == version - 1 and not {version, version - 1} & set(names):
            runs[-1].append(version)
        else:
            runs.append([version])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    named = [f" ({names[run[0]]})" if run[0] in names else "" for run in runs]
    return ", ".join(text + name for text, name in zip(texts, named, strict=True))


def settings_for(uri: str | os.PathLike[str], **new_settings: Any) -> LakeConfig:  # noqa: ANN401
    """Return the settings of an existing lake, or the defaults, updated by `settings`.

    A setting of None changes nothing. `create_lake` raises for settings other than the lake's.
    """
    store = Store(uri)
    settings = open_lake(uri).config if is_lake(store) else LakeConfig()
    return replace(
        settings, **{name: setting for name, setting in new_settings.items() if setting is not None}
    )


def create_lake(uri: str | os.PathLike[str], config: LakeConfig) -> Lake:
    """Create an empty lake, or open an existing lake with the same settings.

    Raises:
        LakeError: a lake with other settings is there, or tables with rows whose `lake.json`
            is gone.

    Examples:
        >>> lake = sl.create_lake("new-lake", sl.LakeConfig(mpps=(0.5, 2.0)))
        >>> lake.info()["slides"]
        {'ready': 0, 'failed': 0}
    """
    store = Store(uri)
    if not is_lake(store):
        if store.is_local:
            store.fs.makedirs(store.root, exist_ok=True)
        with commit_lock(store), held_tables(store):
            if not is_lake(store):
                _remove_unfinished(store)
                _make_tables(store, config)
                # Last: until it is there this is no lake, and making it can start again.
                store.write_bytes(LAKE_FILE, config.to_json())
                return Lake(store, config, roots=record_roots(store, config, new=True))
    return _same_settings(open_lake(uri), config)


def _remove_unfinished(store: Store) -> None:
    """Remove what a creation that was cut short has left: empty tables, or parts of one.

    Raises:
        LakeError: a table has been written to; nothing is removed.
    """
    unfinished: list[str] = []
    existing = store.names("")
    features = store.names("features") if "features" in existing else []
    tables = [rel for rel in (SLIDES, CATALOG) if rel in existing]
    for rel in [*tables, *(f"features/{name}" for name in features)]:
        files = [file.path for file in store.walk(rel)]
        if any(path.startswith(f"{rel}/_versions/") for path in files):
            table = open_table(store, rel)
            if table.version > NEW_TABLE_VERSIONS or table.count_rows():
                msg = (
                    f"{store.shown(rel)} has been written to, but {store.uri} has no {LAKE_FILE}: "
                    f"take {LAKE_FILE} from a copy of the lake, or give another folder"
                )
                raise LakeError(msg)
        unfinished += files
    store.remove(unfinished)


def _make_tables(store: Store, config: LakeConfig) -> None:
    create_table(store, SLIDES, SLIDES_SCHEMA, {})
    for mpp in config.mpps:
        create_table(store, features_table(mpp), tiles_schema(mpp, config.tile_px), {})
    make_index(store, SLIDES, INDEX_COLUMNS[SLIDES])
    create_table(store, CATALOG, CATALOG_SCHEMA, versions_property(store, config))
    make_index(store, CATALOG, INDEX_COLUMNS[CATALOG])


def _same_settings(lake: Lake, config: LakeConfig) -> Lake:
    for name, wanted_setting in asdict(config).items():
        lake_setting = getattr(lake.config, name)
        if lake_setting != wanted_setting and name != "format":
            differs = f"{name}={lake_setting}, but {wanted_setting} was given"
            msg = f"{lake.uri} has {differs}; use another lake"
            raise LakeError(msg)
    return lake
