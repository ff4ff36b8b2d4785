"""What the vectors of slides and patients are made of, by the catalog's checksums.

A vector carries the checksums of the tiles and features that it was computed from. A slide that was
scanned again, or a patient with one more slide, has others, and its vector counts no more.
"""

import json
import zlib
from collections.abc import Sequence

import polars as pl

from featurestore.read.held_out_patients import patient_of
from featurestore.read.lake_view import LakeView
from featurestore.tables.slide_encoding import KEYS, PATIENT, SECTION, SLIDE, Unit


def sources_of(lake: LakeView, columns: Sequence[str], *, mpp: float, unit: Unit) -> pl.DataFrame:
    """Return what each slide's or patient's vector is to be made of, sorted by its name.

    Args:
        lake: read at its own version.
        columns: columns of tile features that the encoder reads.
        mpp: microns per pixel of the tiles.
        unit: what gets a vector; sections are of the same sources as their slide.

    Returns:
        `slide_id` or `patient_id`; `slides`, names of its slides that have tiles; `tiles`, their
        number; `tiles_crc32`; `features_crc32`, null where a slide lacks features of a column.
    """
    present = [name for name in columns if name in lake.teachers(mpp=mpp)]
    rows = lake.places_of(present, mpp=mpp)
    slides = rows.filter(pl.col("teacher").is_null(), pl.col("tiles") > 0).select(
        "slide_id", "tiles", tiles_crc32="crc32"
    )
    for number, name in enumerate(columns):
        of_column = rows.filter(pl.col("teacher") == name)
        one = of_column.select("slide_id", pl.col("crc32").alias(f"crc32_{number}"))
        slides = slides.join(one, on="slide_id", how="left")
    names = [f"crc32_{number}" for number in range(len(columns))]
    by_slide = [
        (slide, tiles, tiles_crc, None if None in sums else list(sums))
        for slide, tiles, tiles_crc, *sums in slides.select(
            "slide_id", "tiles", "tiles_crc32", *names
        ).iter_rows()
    ]
    groups = _groups(lake, [slide for slide, *_ in by_slide], unit)
    facts_of = {slide: facts for slide, *facts in by_slide}
    key = KEYS[SLIDE if unit == SECTION else unit][0]
    return pl.DataFrame(
        [
            {key: name, "slides": members, **_source([facts_of[slide] for slide in members])}
            for name, members in sorted(groups.items())
        ],
        schema={
            key: pl.String,
            "slides": pl.List(pl.String),
            "tiles": pl.Int64,
            "tiles_crc32": pl.UInt32,
            "features_crc32": pl.UInt32,
        },
    )


def _groups(lake: LakeView, slide_ids: Sequence[str], unit: Unit) -> dict[str, list[str]]:
    """Return the slides of each vector, sorted by name."""
    if unit != PATIENT:
        return {slide: [slide] for slide in slide_ids}
    rows = lake.slides().select("slide_id", "patient_id").collect()
    patient = dict(patient_of(rows).select("slide_id", "patient").iter_rows())
    groups: dict[str, list[str]] = {}
    for slide in sorted(slide_ids):
        groups.setdefault(patient[slide], []).append(slide)
    return groups


def _source(facts: Sequence[Sequence[object]]) -> dict[str, object]:
    """Return the tiles of some slides and one checksum of those of all, whatever their names."""
    features = [sums for _, _, sums in facts]
    return {
        "tiles": sum(tiles for tiles, _, _ in facts),  # type: ignore[misc]
        "tiles_crc32": _crc32([crc for _, crc, _ in facts]),
        "features_crc32": None if None in features else _crc32(features),
    }


def _crc32(sums: Sequence[object]) -> int:
    return zlib.crc32(json.dumps(sums, separators=(",", ":")).encode())


def has_changed() -> pl.Expr:
    """Return the condition that a stored row is of other tiles or features than its source.

    The sources' columns have `_now` behind their names. Where a column is not in the lake any more,
    its features are not compared.
    """
    tiles = pl.col("tiles_crc32") != pl.col("tiles_crc32_now")
    features = pl.col("features_crc32") != pl.col("features_crc32_now")
    return (tiles | features.fill_null(value=False)).fill_null(value=True)
