"""Attention files of a run: their paths, their patients, and reading them.

Files are read by column and by cell: all attention of a large run does not fit in memory.

Shape letters: N tiles.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from downstream.report.finished_run import Run
    from featurestore import Lake

_ALIKE = 1e-5
_TILES = ["slide_id", "tile_id", "x", "y", "attention"]


@dataclass(frozen=True, kw_only=True)
class AttentionFile:
    """Attention of the test tiles of one cell.

    Attributes:
        arm: name of the arm.
        fold: number of the fold, of the first repetition and seed.
        path: path of the file in the lake.
    """

    arm: str
    fold: int
    path: str


def attention_files(lake: "Lake", run: str) -> list[AttentionFile]:
    """Return the attention files of a run; none where no model of it has attention."""
    files = []
    for name in lake.store.names(f"runs/{run}/attention"):
        if not name.endswith(".parquet"):
            continue
        path = f"runs/{run}/attention/{name}"
        head = _read_rows(lake, path, ["arm", "fold"], first=True)
        if not head.is_empty():
            files.append(AttentionFile(arm=head["arm"][0], fold=head["fold"][0], path=path))
    return files


def read_tiles(
    lake: "Lake", file: AttentionFile, slide_ids: Sequence[str] | None = None
) -> pl.DataFrame:
    """Return rows of an attention file: slide_id, tile_id, x, y (level-0 px), attention, mpp.

    Args:
        lake: the lake that holds the file.
        file: the attention file.
        slide_ids: slides whose rows are read; None reads all.
    """
    from featurestore import tile_parts

    rows = _read_rows(lake, file.path, _TILES, slide_ids=slide_ids)
    return rows.with_columns(mpp=pl.Series(tile_parts(rows["tile_id"].to_numpy())[1]))


def slides_of(lake: "Lake", file: AttentionFile) -> set[str]:
    """Return the slides that have tiles in an attention file."""
    return set(_read_rows(lake, file.path, ["slide_id"])["slide_id"].unique())


def _read_rows(
    lake: "Lake",
    path: str,
    columns: list[str],
    *,
    slide_ids: Sequence[str] | None = None,
    first: bool = False,
) -> pl.DataFrame:
    """Return columns of an attention file, all rows or those of some slides."""
    import pyarrow.parquet as pq

    with lake.store.fs.open(lake.store.path(path), "rb") as file:
        if first:
            batches = pq.ParquetFile(file).iter_batches(batch_size=1, columns=columns)
            batch = next(batches, None)
            return pl.DataFrame() if batch is None else pl.DataFrame(batch)
        filters = None if slide_ids is None else [("slide_id", "in", list(slide_ids))]
        return pl.DataFrame(pq.read_table(file, columns=columns, filters=filters))


def owners(lake: "Lake", files: Sequence[AttentionFile]) -> pl.DataFrame:
    """Return the slides of an arm's files with their size in pixels and their patient in the run.

    A run's table of labels may name other patients than the lake does.
    """
    of_files = [_read_rows(lake, file.path, ["slide_id", "patient_id"]).unique() for file in files]
    patients = pl.concat(of_files).rename({"patient_id": "patient"})
    slides = lake.slides().select("slide_id", "width_px", "height_px").collect()
    return slides.join(patients, on="slide_id")


def weighs_alike(tiles: pl.DataFrame) -> bool:
    """Whether all tiles of a slide have the same attention, as in a mean.

    >>> same = pl.DataFrame({"slide_id": ["a", "a", "b"], "attention": [0.2, 0.2, 0.6]})
    >>> weighs_alike(same), weighs_alike(same.with_columns(slide_id=pl.lit("a")))
    (True, False)
    """
    weight = pl.col("attention").cast(pl.Float64)
    slides = tiles.group_by("slide_id").agg(low=weight.min(), high=weight.max())
    return slides.filter(pl.col("high") - pl.col("low") > _ALIKE * pl.col("high")).is_empty()


def arms_with_attention(
    lake: "Lake", run: "Run", files: Sequence[AttentionFile]
) -> tuple[list[str], list[str]]:
    """Return the arms that weigh tiles, and the arms that weigh all alike, in the run's order.

    This is decided by the arm's first attention file.
    """
    first = {file.arm: file for file in reversed(files)}
    weighing: list[str] = []
    alike: list[str] = []
    for arm in run.arms:
        if arm in first:
            same = weighs_alike(read_tiles(lake, first[arm]))
            (alike if same else weighing).append(arm)
    return weighing, alike


def first_rows(run: "Run", arm: str) -> pl.DataFrame:
    """Return an arm's test rows of the first repetition and seed, which have attention."""
    rows = run.rows(arm)
    first = (pl.col("repeat") == pl.col("repeat").min()) & (pl.col("seed") == pl.col("seed").min())
    return rows.filter(first)
