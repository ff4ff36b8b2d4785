"""Scores of tiles for a lake that is there: computed from the stored JPEGs, in one commit.

Each shard is read and decoded once for all scores, on all cores of this machine. A score of a fresh
ingest comes from the same JPEGs through the same function, so it is the same to the last bit.
"""

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from cluster import progress
from featurestore import Lake, ShardReader, open_lake
from featurestore.edits import (
    NewColumn,
    ScoreColumn,
    commit_scores,
    rows_without_score,
    score_versions,
    tile_keys,
    write_scores,
)
from featurestore.shards import check_shard
from featurestore.storage import writer_lease
from ingest.errors import InputError
from ingest.scores.score_table import SCORES, score_named
from ingest.tile_jpeg import decode_tile

TILES_AT_ONCE = 4096  # JPEGs of a slide in memory, about 80 MB

Row = dict[str, Any]
#: Catalog rows of the slides in each fragment that lacks a score, by mpp and score.
Missing = dict[float, dict[str, dict[int, list[Row]]]]


@dataclass(kw_only=True)
class FilledScores:
    """The outcome of filling scores.

    Attributes:
        tiles: number of tiles that got each score (would get it, in a dry run); all tiles of a
            fragment count if one of its slides lacked the score.
        no_pixels: slides that can have no scores, since the lake holds no pixels of them.
        seconds: seconds that the whole run took.
        version: version of the lake that has the scores.
    """

    tiles: dict[str, int] = field(default_factory=dict)
    no_pixels: list[str] = field(default_factory=list)
    seconds: float = 0.0
    version: int = 0


def fill_scores(lake_uri: str, names: Sequence[str], *, dry_run: bool = False) -> FilledScores:
    """Compute scores of the tiles that lack them, from their JPEGs, and commit them at once.

    Args:
        lake_uri: folder or URL of the lake.
        names: names of scores of kind `pixels` in `SCORES`.
        dry_run: whether the tiles are only counted, and nothing is written.

    Raises:
        InputError: there is no such score, it is made from the slide and not from its tiles, or the
            lake holds no pixels.
        LakeError: something else of that name is in the lake, or it was compacted meanwhile.
        DamageError: a shard is not what was written; nothing is changed.
    """
    start, lake = time.perf_counter(), open_lake(lake_uri)
    columns = {name: _column(lake, name) for name in dict.fromkeys(names)}
    if not dry_run:
        lake.committer.recover()
        lake = lake.refreshed()
    missing = {
        mpp: {name: rows_without_score(lake, column, mpp) for name, column in columns.items()}
        for mpp in lake.config.mpps
    }
    filled = FilledScores(tiles=_count(missing, columns), no_pixels=_no_pixels(lake))
    if columns and filled.no_pixels and not _has_pixels(lake):
        msg = (
            f"{lake.uri} holds no pixels, since its features were imported; a score is made from "
            "the stored tiles: ingest the slides"
        )
        raise InputError(msg)
    if any(filled.tiles.values()) and not dry_run:
        with writer_lease(lake.store, f"scores {', '.join(columns)}"):
            commit_scores(lake, _write(lake, columns, missing))
    filled.version = lake.refreshed().version
    filled.seconds = round(time.perf_counter() - start, 3)
    return filled


def keep_scores(lake_uri: str) -> FilledScores:
    """Compute the scores that a lake has columns of, for the slides that lack them."""
    lake = open_lake(lake_uri)
    kept = [name for name in score_versions(lake) if name in SCORES]
    return fill_scores(lake_uri, kept) if kept else FilledScores(version=lake.version)


def unknown_scores(lake: Lake) -> str | None:
    """Return a note on the scores of a lake whose functions are not here; None if there are none.

    These are scores of a user's own file; tiles of new slides get none of them.
    """
    unknown = sorted(set(score_versions(lake)) - set(SCORES))
    if not unknown:
        return None
    names = ", ".join(unknown)
    return (
        f"new tiles have no {names}: no score of that name is known here; run `slidelake --extend "
        f"FILE score {lake.uri} {' '.join(unknown)}` with the file that it was made by"
    )


def _column(lake: Lake, name: str) -> ScoreColumn:
    score = score_named(name)
    if score.of_pixels is None:
        msg = (
            f"'{name}' is made from the slide while it is cut, with its tissue, and not from the "
            f"stored tiles: every slide that was ingested has it; where it is null in {lake.uri}, "
            "tiles were imported: ingest those slides"
        )
        raise InputError(msg)
    return ScoreColumn(name=name, type=pa.type_for_alias(score.type), version=score.version)


def _count(missing: Missing, names: Mapping[str, object]) -> dict[str, int]:
    return {
        name: sum(
            row["tiles"]
            for by_score in missing.values()
            for rows in by_score[name].values()
            for row in rows
        )
        for name in names
    }


def _no_pixels(lake: Lake) -> list[str]:
    """Return the slides that have tiles in the catalog and no shard."""
    without = pl.col("teacher").is_null() & pl.col("shard").is_null() & (pl.col("tiles") > 0)
    rows = lake.catalog().filter(without).select("slide_id").collect()
    return sorted(rows["slide_id"].unique())


def _has_pixels(lake: Lake) -> bool:
    shards = lake.catalog().filter(pl.col("shard").is_not_null()).select("slide").head(1)
    return shards.collect().height > 0


def _write(
    lake: Lake, columns: Mapping[str, ScoreColumn], missing: Missing
) -> dict[str, list[NewColumn]]:
    """Write the files of all scores, fragment after fragment."""
    parts: dict[str, list[NewColumn]] = {name: [] for name in columns}
    total = sum(
        row["tiles"]
        for by_score in missing.values()
        for rows in _by_fragment(by_score).values()
        for row in rows
    )
    with (
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
        progress("scores", total=total, unit="tiles") as bar,
    ):
        for mpp, by_score in missing.items():
            parts_here = {
                n: NewColumn(mpp=mpp, field=c.field) for n, c in columns.items() if by_score[n]
            }
            for name, part in parts_here.items():
                parts[name].append(part)
            for fragment, rows in _by_fragment(by_score).items():
                names = [name for name in parts_here if fragment in by_score[name]]
                keys = tile_keys(lake, mpp, fragment)
                values = {name: np.full(len(keys), np.nan) for name in names}
                for row in rows:
                    place = slice(row["row_start"], row["row_start"] + row["tiles"])
                    scores = _scores_of(lake, row, keys[place], names, pool)
                    for name, column in zip(names, scores, strict=True):
                        values[name][place] = column
                    bar.advance(row["tiles"])
                for name in names:
                    write_scores(lake, parts_here[name], fragment, rows, values[name])
    return parts


def _by_fragment(by_score: Mapping[str, Mapping[int, list[Row]]]) -> dict[int, list[Row]]:
    """Return the slides of each fragment that lacks any score."""
    return {fragment: rows for parts in by_score.values() for fragment, rows in parts.items()}


def _scores_of(
    lake: Lake,
    row: Row,
    keys: npt.NDArray[np.int64],
    names: Sequence[str],
    pool: ThreadPoolExecutor,
) -> npt.NDArray[np.float64]:
    """Return the scores [S, N] of a slide's tiles; S scores in the order of `names`, N tiles."""
    functions = [SCORES[name].of_pixels for name in names]

    def of_tile(jpeg: memoryview) -> list[float]:
        pixels = decode_tile(jpeg)
        return [function(pixels) for function in functions if function is not None]

    # Scores of damaged pixels would be wrong for good, under a checksum of their own.
    check_shard(lake.store, row)
    with ShardReader.of(lake.store, row) as shard:
        parts = (keys[at : at + TILES_AT_ONCE] for at in range(0, len(keys), TILES_AT_ONCE))
        scores = [score for part in parts for score in pool.map(of_tile, shard.jpegs(part))]
    return np.array(scores, np.float64).reshape(len(keys), len(names)).T
