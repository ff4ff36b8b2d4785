"""Removes files that no kept version of the lake names: old versions, and what killed writers left.

Kept are the newest versions, snapshots, and the versions that runs and statistics were made from.
Files that a live job is writing are named by nothing yet, so nothing is removed while a job runs.
"""

import datetime as dt
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lance

from featurestore.annotations.lance_keep import stray_files
from featurestore.lake import Lake
from featurestore.lance_ledger import VERSIONS_KEY, root_versions
from featurestore.lance_tables import open_table, properties_of
from featurestore.lock import no_writers
from featurestore.schema import CATALOG, SLIDES
from featurestore.shards import index_path
from featurestore.storage import FileInfo

KEEP = 10


@dataclass(kw_only=True)
class Vacuumed:
    """What was (or, in a dry run, would be) removed, and which lake versions stay readable."""

    kept: list[int]
    versions: int = 0
    files: int = 0
    bytes: int = 0


def vacuum(lake: Lake, *, keep: int = KEEP, dry_run: bool = False) -> Vacuumed:
    """Remove files that only older versions name, and files that none names.

    Args:
        lake: the lake.
        keep: how many of the newest versions stay readable, at least 1.
        dry_run: only count.

    Raises:
        LakeError: a job is writing to the lake.
    """
    with no_writers(lake.store), lake.committer.exclusive():
        catalog = open_table(lake.store, CATALOG)
        kept = kept_versions(lake, catalog, max(1, keep))
        done = Vacuumed(kept=kept)
        needed = _needed(lake, catalog, kept)
        shards = _shards(lake, needed[CATALOG])
        for rel, versions in needed.items():
            _clean(open_table(lake.store, rel), versions, done, dry_run=dry_run)
        _remove_shards(lake, shards, done, dry_run=dry_run)
        _remove(lake, stray_files(lake.store, needed[SLIDES]), done, dry_run=dry_run)
    return done


def lake_versions(catalog: lance.LanceDataset) -> list[int]:
    """Versions of a lake: those of its catalog that name the versions of the other tables."""
    found = [int(entry["version"]) for entry in catalog.versions()]
    return [version for version in found if VERSIONS_KEY in properties_of(catalog, version)]


def kept_versions(lake: Lake, catalog: lance.LanceDataset, keep: int) -> list[int]:
    """The newest versions, snapshots, and what runs and statistics were made from."""
    known = lake_versions(catalog)
    named = {*_named_versions(lake), *lake.snapshots().values()}
    return sorted({*known[-keep:], *(version for version in named if version in known)})


def _named_versions(lake: Lake) -> Iterator[int]:
    for folder in ("runs", "stats", "students"):
        for found in lake.store.walk(folder):
            if found.path.endswith(".json"):
                value = json.loads(lake.read_bytes(found.path))
                version = value.get("lake_version") if isinstance(value, dict) else None
                if isinstance(version, int):
                    yield version


def _needed(lake: Lake, catalog: lance.LanceDataset, kept: Sequence[int]) -> dict[str, set[int]]:
    """Versions of every table that the kept versions of the lake read; newest ones always stay."""
    needed: dict[str, set[int]] = {CATALOG: {*kept, catalog.version}}
    for version in kept:
        for rel, number in root_versions(open_table(lake.store, CATALOG, version)).items():
            needed.setdefault(rel, {open_table(lake.store, rel).version}).add(number)
    return needed


def _clean(table: lance.LanceDataset, needed: set[int], done: Vacuumed, *, dry_run: bool) -> None:
    old = [int(v["version"]) for v in table.versions() if int(v["version"]) not in needed]
    options: dict[str, Any] = (
        {"versions": old}
        if old
        else {
            # No version is that old, so this takes what none names and nothing else.
            "older_than": dt.timedelta(days=36500)
        }
    )
    clean = table.explain_cleanup_old_versions if dry_run else table.cleanup_old_versions
    result = clean(delete_unverified=True, error_if_tagged_old_versions=False, **options)
    stats = result.stats if dry_run else result
    done.versions += int(stats.old_versions)
    done.files += int(stats.data_files_removed + stats.index_files_removed)
    done.files += int(stats.deletion_files_removed)
    done.bytes += int(stats.bytes_removed)


def _shards(lake: Lake, catalog_versions: set[int]) -> set[str]:
    names: set[str] = set()
    for version in catalog_versions:
        table = open_table(lake.store, CATALOG, version).to_table(
            columns=["shard"], filter="shard IS NOT NULL"
        )
        names.update(table["shard"].to_pylist())
    return names | {index_path(name) for name in names}


def _remove_shards(lake: Lake, named: set[str], done: Vacuumed, *, dry_run: bool) -> None:
    stale = [found for found in lake.store.walk("tiles") if found.path not in named]
    _remove(lake, stale, done, dry_run=dry_run)


def _remove(lake: Lake, stale: Sequence[FileInfo], done: Vacuumed, *, dry_run: bool) -> None:
    done.files += len(stale)
    done.bytes += sum(found.bytes for found in stale)
    if not dry_run:
        lake.store.remove([found.path for found in stale])
