"""The attention of all slides that a run tested, each by models that have not seen the patient."""

from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from cluster import progress
from downstream.report.attention_maps import weighing_arms
from downstream.report.finished_run import read_run
from downstream.report.heatmaps.heatmap_files import HeatmapFolder, SlideHeatmap
from downstream.report.heatmaps.heatmap_page import write_heatmap_page
from downstream.report.kept_attention import (
    attention_files,
    owners,
    read_tiles,
    slides_of,
)

if TYPE_CHECKING:
    from downstream.report.kept_attention import AttentionFile
    from featurestore import Lake


def write_all_attention(
    lake: "Lake", run: str, *, arm: str | None = None, folder: str | PathLike[str]
) -> HeatmapFolder:
    """Write the attention of every slide that a run tested, and `index.html`, which lists them.

    Slides whose files are there whole are not drawn again. Models are those of the first repetition
    and seed of the fold in which the slide's patient is tested.

    Args:
        lake: the lake of the run.
        run: name of a finished run.
        arm: name of the arm; None for all that weigh tiles.
        folder: local folder, created if it does not exist.

    Returns:
        The folder with the record of each slide and arm, and the slides that failed.

    Raises:
        RunError: The run does not exist, is not finished, or has no such arm.
        AttentionError: No model of the run has attention.
    """
    finished = read_run(lake, run)
    files = attention_files(lake, finished.name)
    arms = weighing_arms(lake, finished, files, arm)
    of_arms = [file for file in files if file.arm in arms]
    written = HeatmapFolder(lake=lake, folder=Path(folder))
    patient_of = dict(owners(lake, of_arms).select("slide_id", "patient").iter_rows())
    total = sum(len(slides_of(lake, file)) for file in of_arms)
    with progress("attention", total=total, unit="slides") as bar:
        for heatmap in _heatmaps(lake, of_arms, patient_of):
            bar.advance(1, written=int(written.add(heatmap)))
    title = f"Attention of run {run}"
    write_heatmap_page(written, title=title, lead=_lead(arms))
    return written


def _lead(arms: Sequence[str]) -> str:
    """Return a sentence on what the page lists."""
    return (
        f"Every slide that the run tested, by {', '.join(arms)}: models of the first repetition "
        "and seed, each on patients that it was not trained on. Colours are ranks within the slide."
    )


def _heatmaps(
    lake: "Lake", files: Sequence["AttentionFile"], patient_of: dict[str, str]
) -> Iterator[SlideHeatmap]:
    """Yield the attention of each slide, a file of one fold in memory at a time."""
    for file in files:
        tiles = read_tiles(lake, file)
        for (slide_id,), rows in tiles.sort("slide_id").group_by("slide_id", maintain_order=True):
            yield SlideHeatmap(
                slide_id=str(slide_id),
                patient_id=patient_of.get(str(slide_id), str(slide_id)),
                arm=file.arm,
                tiles=rows.with_columns(pl.col("attention").cast(pl.Float32)),
            )
