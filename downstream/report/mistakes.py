"""Tiles that a probe predicted as another class, which people look at first."""

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from downstream.report.tile_pictures import (
    MOST_GROUPS,
    MOST_OF_PATIENT,
    MOST_TILES,
    Strip,
    tile_pictures,
)

if TYPE_CHECKING:
    from downstream.report.finished_run import Run
    from featurestore import Lake


def mistakes(lake: "Lake", run: "Run") -> list[Strip]:
    """Return the tiles of each class that the first arm predicted as another, surest first.

    At most two tiles are of one patient; classes beyond the first six are left out.

    Args:
        lake: the lake that holds the pixels.
        run: a finished run of a tile probe.
    """
    rows = run.rows(run.arms[0])
    probabilities = np.array(rows["probabilities"].to_list())
    predicted = probabilities.argmax(axis=1)
    judged = rows.with_columns(
        pl.Series("predicted", [run.classes[c] for c in predicted], pl.String),
        pl.Series("sure", probabilities.max(axis=1)),
        mpp=pl.lit(float(run.result["config"]["mpps"][0])),
    )
    wrong = judged.filter(pl.col("predicted") != pl.col("label"))
    return [_strip(lake, name, wrong) for name in run.classes[:MOST_GROUPS]]


def _strip(lake: "Lake", name: str, wrong: pl.DataFrame) -> Strip:
    """Return pictures of the surest wrong tiles of one class."""
    keys, down = ("sure", "slide_id", "tile_id"), [True, False, False]
    surest = wrong.filter(pl.col("label") == name).sort(*keys, descending=down)
    few = surest.group_by("patient_id", maintain_order=True).head(MOST_OF_PATIENT)
    chosen = few.sort(*keys, descending=down).head(MOST_TILES)
    jpegs, damage = tile_pictures(lake, chosen)
    tiles = [
        {
            "src": jpegs.get(row["tile_id"]),
            "alt": f"tile {row['tile_id']} of slide {row['slide_id']}",
            "patient": row["patient_id"],
            "text": f"{row['predicted']}, {row['sure']:.2f}",
        }
        for row in chosen.iter_rows(named=True)
    ]
    return Strip(title=f"{name}, predicted as another class", tiles=tiles, damage=damage)
