"""The plan of an ingest: tiles, bytes and time, from a sample of the slides.

A slide is opened in a separate process, as it is cut in one: a decoder that crashes or hangs
on it costs that slide alone, and is named.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster import DiedError, Extension, Isolated, load_extensions, loaded_extensions
from featurestore import LakeConfig, mpp_name
from ingest.cut import failure, jpegs, lake_grids, tissue_options
from ingest.grid import Grid
from ingest.readers.open_slide import open_slide
from ingest.readers.slide_reader import SlideReader, read_options
from ingest.remote.local_copy import local_slide
from ingest.remote.remote_files import is_local
from ingest.scores.score_table import slide_scores
from ingest.survey import survey

LOCAL_SAMPLE, REMOTE_SAMPLE = 12, 3
TIMED_TILES = 16
LOOK_S = 600.0
SLOWEST_BYTES_S = 1e6  # a slide may take so much longer

Row = dict[str, Any]


@dataclass(kw_only=True)
class IngestPlan:
    """The plan of an ingest: slides, tiles, bytes and time.

    Attributes:
        slides: number of slides that would be cut.
        sampled: number of these slides that were opened; the rest is estimated from their bytes.
        tiles: number of tiles per mpp.
        bytes: bytes of all shards.
        seconds: seconds of work on `cores` cores.
        cores: number of cores that `seconds` assumes.
        scores: names of the scores that each tile would get.
        failed: slides among the sampled that would fail, with their reasons.
        notes: remarks on the slides, a sentence each.
    """

    slides: int
    cores: int
    sampled: int = 0
    tiles: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    seconds: float = 0.0
    scores: list[str] = field(default_factory=lambda: list(slide_scores()))
    failed: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Look:
    """The tiles, bytes and time that one slide would take.

    Attributes:
        tiles: number of tiles per mpp.
        bytes: bytes of the slide's shards.
        seconds: seconds of work of one core.
        notes: oddities of the slide, a sentence each.
        reason: why the slide would fail; None if it would not.
    """

    tiles: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    reason: str | None = None


def plan_ingest(rows: Sequence[Row], config: LakeConfig, *, cores: int) -> IngestPlan:
    """Estimate the tiles, bytes and time of an ingest of slides.

    Args:
        rows: the slides, with slide_id, uri, bytes, and perhaps mpp, mask, pen_veto, tissue_by.
        config: settings of the lake.
        cores: number of cores that share the work.
    """
    plan = IngestPlan(slides=len(rows), cores=cores, tiles={mpp_name(m): 0 for m in config.mpps})
    read_bytes = 0
    for row, look in sampled_looks(rows, config):
        read_bytes += row["bytes"] or 0
        _add(plan, row, look)
    all_bytes = sum(row["bytes"] or 0 for row in rows)
    more = all_bytes / read_bytes if read_bytes else 0.0
    plan.tiles = {mpp: round(count * more) for mpp, count in plan.tiles.items()}
    plan.bytes, plan.seconds = round(plan.bytes * more), plan.seconds * more / cores
    return plan


def sampled_looks(rows: Sequence[Row], config: LakeConfig) -> list[tuple[Row, Look]]:
    """Return a sample of slides, of all sizes, each with what it would take.

    Args:
        rows: the slides, as for `plan_ingest`.
        config: settings of the lake.
    """
    child = Isolated(f"{__name__}:look_or_reason")
    try:
        return [(row, _look_apart(child, config, row)) for row in _sample(rows)]
    finally:
        child.close()


def _sample(rows: Sequence[Row]) -> list[Row]:
    """Return a sample of slides of all sizes; a small one where slides have to be fetched."""
    most = LOCAL_SAMPLE if all(is_local(row["uri"]) for row in rows) else REMOTE_SAMPLE
    by_size = sorted(rows, key=lambda row: row["bytes"] or 0)
    at = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int))
    return [by_size[i] for i in at.tolist()]


def _look_apart(child: Isolated, config: LakeConfig, row: Row) -> Look:
    limit_s = LOOK_S + (row["bytes"] or 0) / SLOWEST_BYTES_S
    try:
        look: Look = child.call(config, row, loaded_extensions(), limit_s=limit_s)
    except DiedError as error:
        return Look(reason=f"looking at it {error}")
    return look


def _add(plan: IngestPlan, row: Row, look: Look) -> None:
    plan.sampled += 1
    plan.bytes += look.bytes
    plan.seconds += look.seconds
    plan.notes += [f"{row['slide_id']}: {note}" for note in look.notes]
    for mpp, count in look.tiles.items():
        plan.tiles[mpp] += count
    if look.reason is not None:
        plan.failed.append({"slide": row["slide_id"], "reason": look.reason})


def look_or_reason(config: LakeConfig, row: Row, extensions: Sequence[Extension] = ()) -> Look:
    """Estimate the tiles, bytes and time of one slide; an error becomes the reason."""
    look = Look()
    try:
        load_extensions(extensions)
        _look(look, config, row)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one slide is its reason
        look.reason = failure(row, error)["reason"]
    return look


def _look(look: Look, config: LakeConfig, row: Row) -> None:
    start = time.perf_counter()
    with (
        local_slide(row.get("url") or row["uri"]) as local,
        open_slide(local.path, read_options(row), image=local.image) as slide,
    ):
        slide_survey = survey(slide, **tissue_options(row))
        grids = lake_grids(slide, config)
        look.seconds += time.perf_counter() - start
        kept = slide_survey.kept(grids, config.tissue_min)
        for grid, keep in zip(grids, kept, strict=True):
            _some_tiles(look, config, slide, grid, np.argwhere(keep))
        look.notes = slide.notes


def _some_tiles(
    look: Look, config: LakeConfig, slide: SlideReader, grid: Grid, at: np.typing.NDArray[np.int64]
) -> None:
    look.tiles[mpp_name(grid.mpp)] = len(at)
    if not len(at):
        return
    some = at[np.unique(np.linspace(0, len(at) - 1, TIMED_TILES).astype(int))]
    start = time.perf_counter()
    sizes = [len(jpeg) for jpeg, _ in jpegs(slide, grid, config, some)]
    look.seconds += (time.perf_counter() - start) * len(at) / len(some)
    look.bytes += round(sum(sizes) * len(at) / len(some))
