"""Attention that a run kept: where it lies, whose it is, what is read of it.

Files are read a column and a cell at a time: all attention of a large run does not fit in memory.

Shape letters: N tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from downstream.report_run import Run
    from featurestore import Lake

_ALIKE = 1e-3
_TILES = ["slide_id", "tile_id", "x", "y", "attention"]


@dataclass(frozen=True, kw_only=True)
class AttentionFile:
    """Attention of the test tiles of one cell.

    Attributes:
        arm: The arm.
        fold: The fold, of the first repetition and seed.
        path: In the lake.
    """

    arm: str
    fold: int
    path: str


def attention_files(lake: Lake, run: str) -> list[AttentionFile]:
    """What a run has; empty where no model of it has attention."""
    found = []
    for name in lake.store.names(f"runs/{run}/attention"):
        if not name.endswith(".parquet"):
            continue
        path = f"runs/{run}/attention/{name}"
        head = _read(lake, path, ["arm", "fold"], first=True)
        if not head.is_empty():
            found.append(AttentionFile(arm=head["arm"][0], fold=head["fold"][0], path=path))
    return found


def read_tiles(
    lake: Lake, file: AttentionFile, slide_ids: Sequence[str] | None = None
) -> pl.DataFrame:
    """Rows of a file: slide_id, tile_id, x, y (level-0 pixels), attention, and mpp.

    Args:
        lake: Where it lies.
        file: Which.
        slide_ids: Of these slides only; None reads all.
    """
    from featurestore import tile_parts

    rows = _read(lake, file.path, _TILES, slide_ids=slide_ids)
    return rows.with_columns(mpp=pl.Series(tile_parts(rows["tile_id"].to_numpy())[1]))


def slides_of(lake: Lake, file: AttentionFile) -> set[str]:
    """Slides that a file has tiles of."""
    return set(_read(lake, file.path, ["slide_id"])["slide_id"].unique())


def _read(
    lake: Lake,
    path: str,
    columns: list[str],
    *,
    slide_ids: Sequence[str] | None = None,
    first: bool = False,
) -> pl.DataFrame:
    import pyarrow.parquet as pq

    with lake.store.fs.open(lake.store.path(path), "rb") as file:
        if first:
            batches = pq.ParquetFile(file).iter_batches(batch_size=1, columns=columns)
            batch = next(batches, None)
            return pl.DataFrame() if batch is None else pl.DataFrame(batch)
        wanted = None if slide_ids is None else [("slide_id", "in", list(slide_ids))]
        return pl.DataFrame(pq.read_table(file, columns=columns, filters=wanted))


def owners(lake: Lake) -> pl.DataFrame:
    """Slides with their size in pixels and `patient`: the patient_id, or the slide_id without."""
    from featurestore import patient_of

    slides = lake.slides().select("slide", "slide_id", "patient_id", "width_px", "height_px")
    return patient_of(slides.collect())


def weighs_alike(attention: NDArray[np.float32] | NDArray[np.float64]) -> bool:
    """Whether all tiles of a bag have the same attention, as a mean gives them.

    >>> weighs_alike(np.full(4, 0.25)), weighs_alike(np.array([0.2, 0.8]))
    (True, False)
    """
    if len(attention) < 2:
        return False
    return float(np.ptp(attention)) <= _ALIKE * max(float(attention.mean()), 1e-30)


def arms_with_attention(run: Run, files: Sequence[AttentionFile]) -> list[str]:
    """Arms of the run that have files, in its order."""
    there = {file.arm for file in files}
    return [arm for arm in run.arms if arm in there]


def first_rows(run: Run, arm: str) -> pl.DataFrame:
    """Test rows of the first repetition and seed, for which attention is kept."""
    rows = run.rows(arm)
    first = (pl.col("repeat") == pl.col("repeat").min()) & (pl.col("seed") == pl.col("seed").min())
    return rows.filter(first)
