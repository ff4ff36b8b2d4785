"""The lake of the examples in docstrings: three slides with pictures, made without Ray."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import simplejpeg

from featurestore import Lake, annotate, create_lake, open_lake
from tests.worlds.training_lake import CONFIG, add_features, cut, register, row_of_cells

SLIDES = {"P000-1": 12, "P000-2": 5, "P001-1": 20}
TEACHERS = {"efficientnet_lite0": 8, "efficientnet_lite1": 6}
FIRST, SECOND = TEACHERS
SIDE_PX = 4096


def thumbnail(number: int) -> bytes:
    """Return a small picture that is other for each slide."""
    pixels = np.full((48, 64, 3), 40 * number, np.uint8)
    pixels[:24, :32, 0] = 200
    jpeg: bytes = simplejpeg.encode_jpeg(pixels, quality=90, colorspace="RGB")
    return jpeg


def make_example(folder: Path) -> Lake:
    """Return a lake of three slides of two patients with two teachers and a grade per patient.

    The first teacher has a column at 1.0 mpp, too.
    """
    lake = create_lake(folder, CONFIG)
    numbers = register(lake, list(SLIDES))
    cuts = []
    for number, (name, tiles) in enumerate(SLIDES.items()):
        one = cut(
            lake,
            numbers[name],
            name,
            {0.5: row_of_cells(tiles), 1.0: row_of_cells(tiles // 2)},
            patient=name.partition("-")[0],
        )
        facts = {"width_px": SIDE_PX, "height_px": SIDE_PX * 3 // 4, "mpp": 0.5}
        cuts.append(replace(one, row={**one.row, **facts, "thumbnail": thumbnail(number)}))
    lake.committer.commit_slides(cuts)
    add_features(lake, TEACHERS)
    add_features(lake, {FIRST: TEACHERS[FIRST]}, mpp=1.0)
    grades = pl.DataFrame({"patient_id": ["P000", "P001"], "grade": [3, 1]})
    annotate(lake.refreshed(), grades, "clinical")
    return open_lake(folder)
