"""Restore: a new version of a lake that equals an earlier version; nothing is deleted.

Lance numbers a version by the newest present manifest. Where the newest manifests are lost or
damaged, their numbers must not come again with other contents, since catalogs name tables by
number: each number is filled by a stand-in first, which `roots.json` lists as lost. Damaged
manifests are moved to `damaged/`, where no reader looks.
"""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lance import LanceOperation

from featurestore.commits.lance_groups import Group
from featurestore.commits.lance_ledger import Change, versions_property
from featurestore.config import LakeConfig
from featurestore.errors import DamageError, LakeError
from featurestore.keep.verify.checked_reads import NO_DAMAGE, UnreadableError, read
from featurestore.keep.verify.lance_versions import tables_at, version_damage, versions_of
from featurestore.notebook.shown import Shown
from featurestore.opening import ranges
from featurestore.roots.lake_settings import settings_or_copy
from featurestore.roots.lance_roots import (
    WHOLE_TABLES,
    damaged_indexes,
    lake_tables,
    manifest_path,
    newest_known,
    record_roots,
)
from featurestore.roots.roots_file import Roots, damaged_files, readable_roots, write_roots
from featurestore.roots.snapshots import read_snapshots, version_named
from featurestore.storage.lock import commit_lock, no_writers
from featurestore.storage.store import Store
from featurestore.tables.lance_tables import commit, make_index, open_table
from featurestore.tables.schema import CATALOG, INDEX_COLUMNS

ASIDE = "damaged"


@dataclass(kw_only=True, repr=False)
class Restored(Shown):
    """Result of a restore.

    Attributes:
        version: the new version of the lake.
        equal_to: the earlier version that it is equal to.
        lost: versions of tables whose manifests were lost or damaged, by table.
        set_aside: new places of damaged manifests.
        rebuilt: tables with a rebuilt index.
    """

    version: int = 0
    equal_to: int
    lost: dict[str, list[int]] = field(default_factory=dict)
    set_aside: list[str] = field(default_factory=list)
    rebuilt: list[str] = field(default_factory=list)


def restore(uri: str | os.PathLike[str], version: int | str) -> Restored:
    """Create a new version of a lake that equals an earlier, undamaged version.

    A kill in between leaves the lake as it was, or, if numbers had to be filled, closed to readers
    and writers until the same command ran to its end.

    Args:
        uri: folder or URL of the lake.
        version: number of the version or name of a snapshot.

    Raises:
        LakeError: the version is not there or not whole, or a job is writing.

    Examples:
        >>> lake = sl.open_lake("my-lake")
        >>> edit = sl.drop(lake, "slide", ["s03a"])
        >>> restored = sl.restore("my-lake", lake.version)
        >>> sl.open_lake("my-lake").info()["slides"]["ready"]
        13
    """
    store = Store(uri)
    config = settings_or_copy(store)
    version = version_named(store, str(version))
    done = Restored(equal_to=version)
    with no_writers(store), commit_lock(store) as lease:
        tables = _whole_tables(store, config, version)
        for rel in lake_tables(config):
            _set_manifests_aside(store, rel, tables[rel], done)
        roots = readable_roots(store) or record_roots(store, config)
        newest = {rel: newest_known(store, rel, roots) for rel in tables}
        _write_lost(store, config, roots, newest, done)
        lease.check()
        for rel, last in newest.items():
            _write_stand_ins(store, rel, tables[rel], last)
        group = Group()
        for rel in lake_tables(config)[:-1]:
            lease.check()
            _restore_table(store, rel, tables[rel], group)
        lease.check()
        operation = LanceOperation.Restore(version)
        catalog = open_table(store, CATALOG)
        properties = versions_property(store, config)
        table = commit(
            store, CATALOG, operation, read_version=catalog.version, properties=properties
        )
        record_roots(store, config)
        done.rebuilt = _rebuild_indexes(store, config)
        done.version = int(table.version)
    return done


def _whole_tables(store: Store, config: LakeConfig, version: int) -> dict[str, int]:
    versions = versions_of(store, CATALOG)
    if versions and version not in versions:
        named: dict[int, str] = {}
        with contextlib.suppress(DamageError):  # of a snapshot that nobody asks for
            named = {at: name for name, at in read_snapshots(store).items()}
        versions_text = ranges(_lake_versions(store, config, versions), named)
        msg = (
            f"{store.uri} has no version {version} (any more); it has {versions_text}, and "
            "`slidelake verify` names whole ones"
        )
        raise LakeError(msg)
    try:
        tables = tables_at(store, config, version)
    except UnreadableError as error:
        msg = f"version {version} of {store.uri} can't be read: {error}; choose an earlier one"
        raise LakeError(msg) from error
    if tables is None:
        msg = f"version {version} of {store.uri} is an index's alone; choose the one before it"
        raise LakeError(msg)
    damage = [one.description for one in version_damage(store, config, version)]
    if damage:
        msg = (
            f"version {version} of {store.uri} is not whole ({damage[0]}); `slidelake verify` "
            "names versions that are"
        )
        raise LakeError(msg)
    return tables


def _lake_versions(store: Store, config: LakeConfig, versions: Sequence[int]) -> list[int]:
    """Return the readable versions of the catalog that are the lake's, and no index's alone."""
    lake_versions = []
    for version in versions:
        with contextlib.suppress(UnreadableError):
            if tables_at(store, config, version) is not None:
                lake_versions.append(version)
    return lake_versions


def _set_manifests_aside(store: Store, rel: str, target: int, done: Restored) -> None:
    """Move damaged manifests that are newer than the target, until the newest can be opened."""
    roots = readable_roots(store) or Roots(tables={})
    for version in reversed([number for number in versions_of(store, rel) if number > target]):
        path = manifest_path(store, rel, version)
        if not damaged_files(store, roots, [path]) and _can_open(store, rel, version):
            return
        done.lost.setdefault(rel, []).append(version)
        done.set_aside.append(f"{ASIDE}/{path}")
        store.write_bytes(f"{ASIDE}/{path}", store.read_bytes(path))
        store.remove([path])


def _can_open(store: Store, rel: str, version: int) -> bool:
    try:
        read(store, lambda: open_table(store, rel, version))
    except NO_DAMAGE:  # a manifest that can't be read now may be whole
        raise
    except (UnreadableError, LakeError):
        return False
    return True


def _write_lost(
    store: Store, config: LakeConfig, roots: Roots, newest: Mapping[str, int], done: Restored
) -> None:
    """Record the version numbers that stand-ins will fill, before writing the first stand-in."""
    for rel in lake_tables(config):
        newest_there = open_table(store, rel).version
        lost = {*done.lost.get(rel, []), *range(newest_there + 1, newest[rel] + 1)}
        if lost:
            done.lost[rel] = sorted(lost)
    if done.lost:
        merged = {
            rel: sorted({*roots.lost.get(rel, []), *done.lost.get(rel, [])})
            for rel in {*roots.lost, *done.lost}
        }
        tables = {rel: max(newest[rel], *done.lost.get(rel, [0])) for rel in newest}
        write_roots(store, replace(roots, lost=merged, tables=tables))


def _write_stand_ins(store: Store, rel: str, target: int, last: int) -> None:
    """Fill the numbers of lost versions with stand-ins, up to the last committed version."""
    roots = readable_roots(store) or Roots(tables={})
    last = max(last, *roots.lost.get(rel, [0]))
    while (table := open_table(store, rel)).version < last:
        operation = LanceOperation.Restore(target)
        commit(store, rel, operation, read_version=table.version, properties={})


def _restore_table(store: Store, rel: str, target: int, group: Group) -> None:
    table = open_table(store, rel)
    roots = readable_roots(store) or Roots(tables={})
    if table.version == target and target not in roots.lost.get(rel, []):
        return
    operation = LanceOperation.Restore(target)
    # Never the last of its group: a kill before the catalog's own commit takes all of it back.
    properties = group.part(Change())
    commit(store, rel, operation, read_version=table.version, properties=properties)


def _rebuild_indexes(store: Store, config: LakeConfig) -> list[str]:
    """Rebuild and return the damaged indexes that the earlier version had."""
    rebuilt = []
    for rel in WHOLE_TABLES:
        if damaged_indexes(store, rel):
            make_index(store, rel, INDEX_COLUMNS[rel], replace=True)
            rebuilt.append(rel)
    if rebuilt:
        catalog = open_table(store, CATALOG)
        operation = LanceOperation.Append([])
        properties = versions_property(store, config)
        commit(store, CATALOG, operation, read_version=catalog.version, properties=properties)
        record_roots(store, config)
    return rebuilt
