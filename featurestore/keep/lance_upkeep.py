"""Advice on when to compact or vacuum a lake, from lists of files and fragments alone."""

from dataclasses import dataclass

from featurestore.commits.lance_ledger import root_versions
from featurestore.keep.lance_compact import mergeable
from featurestore.lake import Lake
from featurestore.tables.lance_tables import open_table, table_versions
from featurestore.tables.schema import CATALOG

# Fewer are not worth a command: scans and commits are as fast with them.
MANY_VERSIONS, MANY_BYTES = 200, 100_000_000
MANY_FRAGMENTS = 64


@dataclass(frozen=True, kw_only=True)
class Upkeep:
    """Versions and fragments that have piled up in a lake.

    Attributes:
        versions: versions of the catalog that are kept.
        history_bytes: size of all lists of fragments and of all transactions.
        fragments: number of fragments of the features tables.
        mergeable: fragments that would be gone after a compact.
    """

    versions: int
    history_bytes: int
    fragments: int
    mergeable: int

    def advice(self) -> list[str]:
        """Return a line for each command that would pay."""
        lines = []
        if self.mergeable >= MANY_FRAGMENTS:
            after = self.fragments - self.mergeable
            lines.append(
                f"{self.fragments:,} fragments: `slidelake compact` would make {after:,} of them"
            )
        if self.versions >= MANY_VERSIONS or self.history_bytes >= MANY_BYTES:
            lines.append(
                f"{self.versions:,} versions with {self.history_bytes / 1e6:,.1f} MB of lists: "
                "`slidelake vacuum` frees old ones, --auto-vacuum of ingest and extract those "
                "older than a week"
            )
        return lines


def upkeep(lake: Lake) -> Upkeep:
    """Look at what has piled up in the newest version of a lake; nothing of the data is read."""
    catalog = open_table(lake.store, CATALOG)
    tables = [CATALOG, *root_versions(catalog)]
    history = sum(
        file.bytes
        for rel in tables
        for folder in ("_versions", "_transactions")
        for file in lake.store.walk(f"{rel}/{folder}")
    )
    fragments, saved = mergeable(lake)
    return Upkeep(
        versions=len(table_versions(catalog)),
        history_bytes=history,
        fragments=fragments,
        mergeable=saved,
    )
