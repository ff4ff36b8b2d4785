"""Checksums of shards' indexes for the catalog of a lake that was written before they were kept."""

from collections.abc import Iterator
from typing import Any

import polars as pl

from featurestore.commits.lance_ledger import Change, among
from featurestore.errors import DamageError
from featurestore.lake import Lake
from featurestore.shards.shard_index import ShardIndex, index_path
from featurestore.storage.store import Store
from featurestore.tables.schema import CATALOG

SLIDES_AT_ONCE = 1000


def unchecked_indexes(lake: Lake) -> int:
    """Count the shards whose index has no checksum in the catalog."""
    table = lake.table(CATALOG)
    without_checksum = " AND index_crc32 IS NULL" if "index_crc32" in table.schema.names else ""
    return int(table.count_rows(f"shard IS NOT NULL{without_checksum}"))


def add_index_checksums(lake: Lake) -> int:
    """Record the checksums of the indexes as they are now, a commit for each thousand shards.

    An index that can't be read gets none: `verify` names it.

    Returns:
        The number of shards that got a checksum.
    """
    count = 0
    for mpp, slides in _unchecked(lake):
        committer = lake.committer
        with committer.exclusive():
            rows = committer.ledger.tiles_rows(mpp, slides)
            named = (_with_checksum(lake.store, row) for row in rows)
            fresh = [row for row in named if row is not None]
            if fresh:
                numbers = [row["slide"] for row in fresh]
                drop = f"teacher IS NULL AND mpp = {mpp} AND {among(numbers)}"
                committer.apply([Change(add=fresh, drop=drop)])
            count += len(fresh)
    return count


def _unchecked(lake: Lake) -> Iterator[tuple[float, list[int]]]:
    """Yield an mpp and a batch of slide numbers with a shard index without checksum."""
    for mpp in lake.config.mpps:
        rows = lake.tiles_of(mpp=mpp).filter(pl.col("shard").is_not_null())
        if "index_crc32" in rows.columns:
            rows = rows.filter(pl.col("index_crc32").is_null())
        slides = rows["slide"].to_list()
        for start in range(0, len(slides), SLIDES_AT_ONCE):
            yield mpp, slides[start : start + SLIDES_AT_ONCE]


def _with_checksum(store: Store, row: dict[str, Any]) -> dict[str, Any] | None:
    """Return a catalog row with its index's checksum; None if there is nothing to add."""
    if not row["shard"] or row.get("index_crc32") is not None:
        return None
    try:
        index = ShardIndex.from_bytes(store.read_bytes(index_path(row["shard"])))
    except (FileNotFoundError, DamageError):
        return None
    return {**row, "index_crc32": index.crc32}
