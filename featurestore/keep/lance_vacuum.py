"""Vacuum: removes files that no kept version names, of old versions and of killed writers.

Parts of columns whose extract was cut short go, too: the next extract computes their rows again.
Kept are the newest versions, snapshots, and the versions that runs and statistics refer to.
Files that a live job is writing are named by nothing yet, so nothing is removed while a job runs.
Nothing is written before something was deleted, so that it works on a full disk.
"""

import contextlib
import datetime as dt
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lance

from featurestore.commits.lance_ledger import is_lake_version, lake_versions, root_versions
from featurestore.errors import InUseError, LakeError
from featurestore.keep.lance_kept_annotations import stray_files
from featurestore.keep.verify.last_verified import last_verified
from featurestore.lake import Lake
from featurestore.notebook.shown import Shown
from featurestore.shards.shard_index import index_path
from featurestore.storage.full_disk import is_disk_full
from featurestore.storage.lock import no_writers
from featurestore.storage.side_by_side import side_by_side
from featurestore.storage.store import FileInfo, Store
from featurestore.tables.column_parts import part_files
from featurestore.tables.lance_tables import (
    open_table,
    repeated_listing,
    table_versions,
    version_times,
)
from featurestore.tables.schema import CATALOG, SLIDES

KEEP = 10
# An automatic vacuum keeps this number of newest versions, and all versions younger than the days.
AUTO_KEEP, AUTO_DAYS = 100, 7.0
# A search for old files reads every transaction of the catalog: not for a handful of versions.
AUTO_LEAST = 20
# Files that are named to be removed from a table in a bucket: 100 MB of names.
MOST_FILES = 500_000
LANCE_FOLDERS = ("_versions/", "_transactions/", "data/", "_indices/", "_deletions/", "_fri/")

log = logging.getLogger(__name__)


@dataclass(kw_only=True, repr=False)
class Vacuumed(Shown):
    """Files that were (or in a dry run would be) removed, and lake versions that stay."""

    kept: list[int]
    versions: int = 0
    files: int = 0
    bytes: int = 0


def vacuum(lake: Lake, *, keep: int = KEEP, dry_run: bool = False) -> Vacuumed:
    """Remove files that only older versions name, and files that no version names.

    Args:
        lake: the lake.
        keep: number of newest versions that stay readable, at least 1.
        dry_run: only count.

    Raises:
        LakeError: a job is writing to the lake.

    Examples:
        >>> freed = sl.vacuum(sl.open_lake("my-lake"), keep=1, dry_run=True)
        >>> freed.kept == [sl.open_lake("my-lake").version]
        True
    """
    with _exclusive_access(lake):
        catalog = open_table(lake.store, CATALOG)
        done = Vacuumed(kept=kept_versions(lake, lake_versions(catalog, newest=max(1, keep))))
        needed = _needed_versions(lake, catalog, done.kept)
        shards = named_shards(lake, needed[CATALOG])
        _clean_tables(lake, needed, done, dry_run=dry_run)
        _remove_shards(lake, shards, done, dry_run=dry_run)
        _remove(lake, stray_files(lake.store, needed[SLIDES]), done, dry_run=dry_run)
        _remove(lake, part_files(lake.store), done, dry_run=dry_run)
    return done


def free_old_versions(
    lake: Lake, *, keep: int = AUTO_KEEP, days: float = AUTO_DAYS
) -> Vacuumed | None:
    """Free old versions after a job, if there are many and no other job is at work.

    Tiles of replaced slides and leftovers of killed jobs stay for `vacuum`: finding them needs a
    listing of all shards.

    Args:
        lake: the lake.
        keep: number of newest versions that stay.
        days: age in days below which all versions stay.

    Returns:
        What was freed; None if there was too little to free, or others are writing.
    """
    catalog = open_table(lake.store, CATALOG)
    numbers = table_versions(catalog)
    # Their dates are in their manifests, each of which would be read.
    if len(numbers) - max(1, keep) < AUTO_LEAST:
        return None
    if len(_old_versions(catalog, numbers, keep, days)) < AUTO_LEAST:
        return None
    try:
        with _exclusive_access(lake):
            catalog = open_table(lake.store, CATALOG)
            lake_numbers = lake_versions(catalog)
            old = _old_versions(catalog, lake_numbers, keep, days)
            recent = [version for version in lake_numbers if version not in old]
            done = Vacuumed(kept=kept_versions(lake, recent))
            needed = _needed_versions(lake, catalog, done.kept)
            many = {
                rel: versions
                for rel, versions in needed.items()
                if _unneeded_versions(open_table(lake.store, rel), versions)
            }
            _clean_tables(lake, many, done, dry_run=False)
    except InUseError as error:
        log.info("old versions stay for now: %s", error)
        return None
    return done


def _old_versions(
    catalog: lance.LanceDataset, versions: Sequence[int], keep: int, days: float
) -> set[int]:
    """Return the versions that are neither among the newest nor young."""
    since = dt.datetime.now() - dt.timedelta(days=days)  # Lance gives local times
    written = version_times(catalog)
    return {version for version in versions[: -max(1, keep)] if written[version] < since}


@contextlib.contextmanager
def _exclusive_access(lake: Lake) -> Iterator[None]:
    """Hold both locks; finish unfinished commits first, or last on a full disk."""
    with no_writers(lake.store), lake.committer.exclusive(recover=False) as committer:
        try:
            committer.finish()
            finished = True
        except Exception as error:
            if not is_disk_full(error):
                raise
            finished = False
        yield
        if not finished:
            committer.finish()


def kept_versions(lake: Lake, recent: Sequence[int]) -> list[int]:
    """Return recent versions, snapshots, runs' versions and the version last verified as whole."""
    catalog = open_table(lake.store, CATALOG)
    named = {*_named_versions(lake), *lake.snapshots().values(), last_verified(lake.store)}
    older = [number for number in table_versions(catalog) if number in named - set(recent)]
    return sorted({*recent, *(number for number in older if is_lake_version(catalog, number))})


def _named_versions(lake: Lake) -> Iterator[int]:
    for folder in ("runs", "stats", "students"):
        for file in lake.store.walk(folder):
            if file.path.endswith(".json"):
                record = _json(lake, file.path)
                version = record.get("lake_version") if isinstance(record, dict) else None
                if isinstance(version, int):
                    yield version


def _json(lake: Lake, path: str) -> Any:  # noqa: ANN401 - JSON is what it is
    try:
        return json.loads(lake.read_bytes(path))
    except ValueError as error:
        msg = (
            f"{lake.uri}/{path} is not whole, so the version of the lake that it was made from is "
            f"not known: delete its folder, or keep all versions ({error})"
        )
        raise LakeError(msg) from error


def _needed_versions(
    lake: Lake, catalog: lance.LanceDataset, kept: Sequence[int]
) -> dict[str, set[int]]:
    """Return the versions of every table that the kept versions of the lake read.

    All versions from the catalog's on stay: their commits may be unfinished.
    """
    needed: dict[str, set[int]] = {CATALOG: {*kept, catalog.version}}
    for rel, number in root_versions(catalog).items():
        needed[rel] = {*range(number, open_table(lake.store, rel).version + 1)}
    for version in kept:
        for rel, number in root_versions(catalog, version).items():
            if rel not in needed:
                needed[rel] = {open_table(lake.store, rel).version}
            needed[rel].add(number)
    return needed


def _unneeded_versions(table: lance.LanceDataset, needed: set[int]) -> list[int]:
    return [version for version in table_versions(table) if version not in needed]


def _clean_tables(
    lake: Lake, needed: dict[str, set[int]], done: Vacuumed, *, dry_run: bool
) -> None:
    """Remove the files of tables that no needed version names; count them."""
    # Opened here: other threads do not share what the holder of the lock has opened.
    tables = [(rel, open_table(lake.store, rel), versions) for rel, versions in needed.items()]

    def clean(one: tuple[str, lance.LanceDataset, set[int]]) -> tuple[int, int, int]:
        return _clean_table(lake.store, *one, dry_run=dry_run)

    for versions, files, size in side_by_side(lake.store, clean, tables):
        done.versions += versions
        done.files += files
        done.bytes += size


def _clean_table(
    store: Store, rel: str, table: lance.LanceDataset, needed: set[int], *, dry_run: bool
) -> tuple[int, int, int]:
    """Remove files of one table; return the numbers of versions, files and bytes."""
    old = _unneeded_versions(table, needed)
    options: dict[str, Any] = (
        {"versions": old}
        if old
        else {
            # No version is that old, so this takes what none names and nothing else.
            "older_than": dt.timedelta(days=36500)
        }
    )
    options |= {"delete_unverified": True, "error_if_tagged_old_versions": False}
    if dry_run:
        stats = repeated_listing(lambda: table.explain_cleanup_old_versions(**options)).stats
    elif store.is_local:
        stats = table.cleanup_old_versions(**options)
    else:
        stats = _remove_from_bucket(store, rel, table, options)
    removed = stats.data_files_removed + stats.index_files_removed + stats.deletion_files_removed
    return int(stats.old_versions), int(removed), int(stats.bytes_removed)


def _remove_from_bucket(
    store: Store, rel: str, table: lance.LanceDataset, options: dict[str, Any]
) -> Any:  # noqa: ANN401 - Lance's statistics, untyped
    """Remove the files that Lance would remove, a thousand by a request; it takes one for each."""
    options_of_files = {**options, "include_files": True, "max_files": MOST_FILES}
    explanation = repeated_listing(lambda: table.explain_cleanup_old_versions(**options_of_files))
    if explanation.candidate_files_truncated:
        return table.cleanup_old_versions(**options)
    names = [file.path.rpartition(f"{rel}/")[2] for file in explanation.candidate_files]
    if not all(name.startswith(LANCE_FOLDERS) for name in names):
        return table.cleanup_old_versions(**options)
    # The manifests last, as Lance does: by them the next vacuum goes on if this one is killed.
    names.sort(key=lambda name: name.startswith("_versions/"))
    store.remove([f"{rel}/{name}" for name in names])
    return explanation.stats


def named_shards(lake: Lake, catalog_versions: set[int]) -> set[str]:
    """Return the paths of the shards that versions of the catalog name, and of their indexes."""
    names: set[str] = set()
    read: set[tuple[str, ...]] = set()
    for version in sorted(catalog_versions):
        table = open_table(lake.store, CATALOG, version)
        # Versions share most of their fragments.
        fragments = {_files_of(part): part for part in table.get_fragments()}
        new = [part for files, part in fragments.items() if files not in read]
        read |= fragments.keys()
        if new:
            rows = table.scanner(columns=["shard"], filter="shard IS NOT NULL", fragments=new)
            names.update(rows.to_table()["shard"].to_pylist())
    return names | {index_path(name) for name in names}


def _files_of(fragment: lance.LanceFragment) -> tuple[str, ...]:
    """Return what a fragment is read from: one that lost rows has another deletion file."""
    deletions = json.dumps(fragment.metadata.to_json().get("deletion_file"), sort_keys=True)
    return (*(str(file.path) for file in fragment.metadata.files), deletions)


def _remove_shards(lake: Lake, named: set[str], done: Vacuumed, *, dry_run: bool) -> None:
    stale = [file for file in lake.store.walk("tiles") if file.path not in named]
    _remove(lake, stale, done, dry_run=dry_run)


def _remove(lake: Lake, stale: Sequence[FileInfo], done: Vacuumed, *, dry_run: bool) -> None:
    done.files += len(stale)
    done.bytes += sum(file.bytes for file in stale)
    if not dry_run:
        lake.store.remove([file.path for file in stale])
