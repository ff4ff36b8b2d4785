"""Counts over a whole lake, batch by batch: memory does not grow with the number of slides."""

from collections import Counter
from dataclasses import dataclass, field

import lance
import polars as pl

from featurestore.tables.schema import DROPPED

BATCH_ROWS = 16_384


@dataclass(kw_only=True)
class TileCounts:
    """Totals of a lake's catalog.

    Attributes:
        tiles: numbers of tiles by mpp and teacher; teacher None counts the tiles themselves.
        shard_bytes: size of all shards.
    """

    tiles: Counter[tuple[float, str | None]] = field(default_factory=Counter)
    shard_bytes: int = 0


def count_tiles(catalog: lance.LanceDataset) -> TileCounts:
    """Add up the tiles and shard bytes of a catalog."""
    counts = TileCounts()
    columns = ["mpp", "teacher", "tiles", "shard_bytes"]
    for batch in catalog.to_batches(columns=columns, batch_size=BATCH_ROWS):
        frame = pl.DataFrame(batch)
        sums = frame.group_by("mpp", "teacher").agg(pl.col("tiles").cast(pl.Int64).sum())
        for mpp, teacher, tiles in sums.iter_rows():
            counts.tiles[mpp, teacher] += tiles
        counts.shard_bytes += int(frame["shard_bytes"].sum())
    return counts


def count_states(slides: lance.LanceDataset) -> dict[str, int]:
    """Count the slides of a lake by their state; dropped slides are not counted."""
    states: Counter[str] = Counter()
    for batch in slides.to_batches(columns=["state"], batch_size=BATCH_ROWS):
        states.update(batch["state"].to_pylist())
    return {state: count for state, count in states.items() if state != DROPPED}
