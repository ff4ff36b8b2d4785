"""Opening a lake at a version, and making one."""

import os
from dataclasses import asdict, replace
from typing import Any

from featurestore.config import LakeConfig
from featurestore.errors import LakeError, LakeMissingError
from featurestore.first_reads import FIRST_READ, Check, known_check
from featurestore.lake import Lake
from featurestore.lance_ledger import versions_property
from featurestore.lance_tables import create_table, make_index
from featurestore.lock import commit_lock
from featurestore.schema import (
    CATALOG,
    CATALOG_SCHEMA,
    SLIDES,
    SLIDES_SCHEMA,
    features_table,
    tiles_schema,
)
from featurestore.storage import Store


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
            slide once more for it, before the first tile of it is used. None compares nothing.
            Frames (`lake.tiles`, `lake.features`) and `query` are never compared.

    Raises:
        LakeMissingError: there is none.
        FormatError: it was written by a newer slidelake.
        LakeError: it has no such version or snapshot, or `check` has another value.
    """
    check = known_check(check)
    store = Store(uri)
    if not store.exists("lake.json"):
        what = "is not a lake (no lake.json)" if store.fs.exists(store.root) else "does not exist"
        msg = f"{store.uri} {what}; `slidelake ingest` makes one"
        raise LakeMissingError(msg)
    config = LakeConfig.from_json(store.read_bytes("lake.json"), where=store.uri)
    number = None if version is None else _version_number(Lake(store, config), version)
    return Lake(store, config, number, check)


def _version_number(lake: Lake, version: int | str) -> int:
    if isinstance(version, int) or version.isdecimal():
        return int(version)
    known = lake.snapshots()
    if version not in known:
        msg = f"{lake.uri} has no snapshot '{version}'; it has: {', '.join(known) or 'none'}"
        raise LakeError(msg)
    return known[version]


def settings_for(uri: str | os.PathLike[str], **given: Any) -> LakeConfig:  # noqa: ANN401
    """Settings for a lake that may be there already: its own, or the defaults, with what is given.

    Settings given as None are not given. `create_lake` refuses others than an existing lake's.
    """
    store = Store(uri)
    known = open_lake(uri).config if store.exists("lake.json") else LakeConfig()
    return replace(known, **{name: value for name, value in given.items() if value is not None})


def create_lake(uri: str | os.PathLike[str], config: LakeConfig) -> Lake:
    """Make an empty lake, or open the one that is there if its settings are the same.

    Raises:
        LakeError: a lake with other settings is there, or the folder holds other things.
    """
    store = Store(uri)
    if not store.exists("lake.json"):
        store.fs.makedirs(store.root, exist_ok=True)
        with commit_lock(store):
            if not store.exists("lake.json"):
                _make_tables(store, config)
                # Last: until it is there this is no lake, and making it can start again.
                store.write_bytes("lake.json", config.to_json())
    return _same_settings(open_lake(uri), config)


def _make_tables(store: Store, config: LakeConfig) -> None:
    create_table(store, SLIDES, SLIDES_SCHEMA, {})
    for mpp in config.mpps:
        create_table(store, features_table(mpp), tiles_schema(mpp, config.tile_px), {})
    make_index(store, SLIDES, "slide_id")
    create_table(store, CATALOG, CATALOG_SCHEMA, versions_property(store, config))
    make_index(store, CATALOG, "slide")


def _same_settings(lake: Lake, config: LakeConfig) -> Lake:
    for name, given in asdict(config).items():
        there = getattr(lake.config, name)
        if there != given and name != "format":
            msg = f"{lake.uri} has {name}={there}, but {given} was given; use another lake"
            raise LakeError(msg)
    return lake
