"""What an ingest would do: tiles, bytes and time, from a look at some of the slides."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from featurestore import LakeConfig
from featurestore.ids import mpp_name
from ingest.cut import jpegs, lake_grids
from ingest.errors import SlideError
from ingest.grid import Grid, keep_tiles
from ingest.readers.tiff_reader import TiffReader
from ingest.remote import local_slide
from ingest.remote_files import is_local
from ingest.survey import survey

LOCAL_SAMPLE, REMOTE_SAMPLE = 12, 3
TIMED_TILES = 16

Row = dict[str, Any]


@dataclass(kw_only=True)
class Plan:
    """What an ingest would do.

    Attributes:
        slides: that would be cut.
        sampled: of them that were looked at; the rest is reckoned from their bytes.
        tiles: per mpp.
        bytes: of all shards.
        seconds: of work on so many cores.
        cores: that the time is for.
        failed: slides among the sampled that would fail, with their reasons.
    """

    slides: int
    cores: int
    sampled: int = 0
    tiles: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    seconds: float = 0.0
    failed: list[dict[str, str]] = field(default_factory=list)


def plan_ingest(rows: Sequence[Row], config: LakeConfig, *, cores: int) -> Plan:
    """Estimate an ingest of slides.

    Args:
        rows: of the slides, with slide_id, uri, bytes, and perhaps mpp, mask and pen_veto.
        config: settings of the lake.
        cores: to share the work.
    """
    plan = Plan(slides=len(rows), cores=cores, tiles={mpp_name(m): 0 for m in config.mpps})
    seen_bytes = 0
    for row in _sample(rows):
        plan.sampled += 1
        seen_bytes += row["bytes"] or 0
        try:
            _look(plan, config, row)
        except SlideError as error:
            plan.failed.append({"slide": row["slide_id"], "reason": str(error)})
    all_bytes = sum(row["bytes"] or 0 for row in rows)
    more = all_bytes / seen_bytes if seen_bytes else 0.0
    plan.tiles = {mpp: round(count * more) for mpp, count in plan.tiles.items()}
    plan.bytes, plan.seconds = round(plan.bytes * more), plan.seconds * more / cores
    return plan


def _sample(rows: Sequence[Row]) -> list[Row]:
    """Slides of all sizes; few where each one has to travel."""
    most = LOCAL_SAMPLE if all(is_local(row["uri"]) for row in rows) else REMOTE_SAMPLE
    by_size = sorted(rows, key=lambda row: row["bytes"] or 0)
    at = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int))
    return [by_size[i] for i in at.tolist()]


def _look(plan: Plan, config: LakeConfig, row: Row) -> None:
    start = time.perf_counter()
    mpp, url = row.get("mpp"), row.get("url") or row["uri"]
    with local_slide(url) as local, TiffReader(local.path, mpp=mpp) as slide:
        seen = survey(slide, pen_veto=row.get("pen_veto", True), mask=row.get("mask"))
        grids = lake_grids(slide, config)
        plan.seconds += time.perf_counter() - start
        kept = keep_tiles(seen.shares(grids), grids, config.tissue_min)
        for grid, keep in zip(grids, kept, strict=True):
            _some_tiles(plan, config, slide, grid, np.argwhere(keep))


def _some_tiles(
    plan: Plan, config: LakeConfig, slide: TiffReader, grid: Grid, at: np.typing.NDArray[np.int64]
) -> None:
    plan.tiles[mpp_name(grid.mpp)] += len(at)
    if not len(at):
        return
    some = at[np.unique(np.linspace(0, len(at) - 1, TIMED_TILES).astype(int))]
    start = time.perf_counter()
    sizes = [len(jpeg) for jpeg, _ in jpegs(slide, grid, config, some)]
    plan.seconds += (time.perf_counter() - start) * len(at) / len(some)
    plan.bytes += round(sum(sizes) * len(at) / len(some))
