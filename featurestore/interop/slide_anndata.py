"""A slide of a lake as an AnnData in memory, with parts of the export's tables."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from featurestore.annotations.annotation_export import AnnotationsOut, tile_rows
from featurestore.interop.foreign_slide import InteropError, SlideTiles
from featurestore.interop.writers.anndata_table import (
    REGION,
    centres,
    check_packages,
    lake_facts,
    tile_obs,
    tile_spec,
)
from featurestore.notebook.thumbnail import decoded_thumbnail
from featurestore.read.bags import names_of
from featurestore.read.lake_view import LakeView, similar_slide
from featurestore.read.selection import Selection
from featurestore.tables.schema import (
    ANNOTATION,
    OTHER,
    SCORE,
    SCORE_FIELDS,
    features_table,
    kind_of,
)

if TYPE_CHECKING:
    from anndata import AnnData

Row = dict[str, Any]


def slide_anndata(
    lake: LakeView, slide_id: str, columns: str | Sequence[str] | None, mpp: float
) -> "AnnData":
    """Return the tiles of a slide that have the features of all columns: see `Lake.to_anndata`.

    Raises:
        InteropError: anndata is not installed, or the slide has no tiles at this mpp.
        LakeError: the slide has no features of a column.
        DamageError: what is stored differs from what was written.
    """
    check_packages("anndata")
    from anndata import AnnData

    mpp = lake.known_mpp(mpp)
    place = _tile_place(lake, slide_id, mpp)
    names = _columns_of(lake, slide_id, columns, mpp)
    features, keys = {}, None
    if names:
        bag = lake.bag(slide_id, names, mpp=mpp)
        features = {name: array.astype(np.float32) for name, array in bag.by_teacher.items()}
        keys = bag.tile_id
    rows = _tile_table(lake, place, mpp, keys)
    tiles, slide = _tiles(lake, place, rows, mpp), _slide_row(lake, slide_id)
    values = AnnotationsOut(lake, mpp).of(slide_id, slide["patient_id"], place).values
    first, *others = names or [""]
    return AnnData(
        X=features.get(first),
        obs=tile_obs(tiles, rows["tile_id"].to_numpy(), rows.drop("tile_id", "x", "y")),
        obsm={"spatial": centres(tiles), **{f"X_{name}": features[name] for name in others}},
        uns={
            "spatialdata_attrs": dict(REGION),
            "tile_spec": tile_spec(tiles),
            "slide_properties": _slide_properties(slide),
            "spatial": {slide_id: _squidpy_facts(lake, slide, tiles)},
            "slidelake": {
                **lake_facts(tiles, {n: lake.identity(n, mpp=mpp) for n in names}, values),
                "identities": json.dumps({n: lake.identity(n, mpp=mpp) for n in names}),
                "lake": lake.uri,
                "version": lake.version,
            },
        },
    )


def _tile_place(lake: LakeView, slide_id: str, mpp: float) -> Row:
    """Return the catalog's row of a slide's tiles.

    Raises:
        InteropError: the slide is unknown, or has no tiles at this mpp.
    """
    rows = lake.tiles_of(mpp=mpp, slide_ids=[slide_id])
    if rows.height != 1:
        msg = f"slide '{slide_id}' is not in {lake.uri} at mpp {mpp}"
        msg += similar_slide(lake, slide_id)
        raise InteropError(msg)
    place: Row = rows.row(0, named=True)
    if not place["tiles"]:
        msg = f"slide '{slide_id}' has no tiles at mpp {mpp}: it has no tissue"
        raise InteropError(msg)
    return place


def _columns_of(
    lake: LakeView, slide_id: str, columns: str | Sequence[str] | None, mpp: float
) -> list[str]:
    """Return the given columns, or all teachers of which the slide has features."""
    if columns is not None:
        return names_of(columns) if columns else []
    return [
        name
        for name in lake.teachers(mpp=mpp)
        if lake.features_of(name, mpp=mpp, slide_ids=[slide_id]).height
    ]


def _tile_table(lake: LakeView, place: Row, mpp: float, keys: Any) -> pl.DataFrame:  # noqa: ANN401
    """Return key, place, scores and annotations of a slide's tiles, or of those with some keys."""
    lake.first_reads.compare(
        lake.row_reader(mpp=mpp), Selection(pl.DataFrame([place]), mpp), [0], []
    )
    scores = {field.name for field in SCORE_FIELDS}
    names = [
        field.name
        for field in lake.table(features_table(mpp)).schema
        if field.name in scores or kind_of(field) in (SCORE, ANNOTATION, OTHER)
    ]
    rows = tile_rows(lake, place, ["x", "y", *names])
    return rows if keys is None else rows.filter(pl.col("tile_id").is_in(keys))


def _tiles(lake: LakeView, place: Row, rows: pl.DataFrame, mpp: float) -> SlideTiles:
    return SlideTiles(
        slide_id=place["slide_id"],
        x=rows["x"].to_numpy().astype(np.int64),
        y=rows["y"].to_numpy().astype(np.int64),
        tile_px=lake.config.tile_px,
        tile_px_level0=place["tile_px_level0"],
        mpp=mpp,
        mpp_source="lake",
        attrs={"overlap": lake.config.tile_px - lake.config.step_px},
    )


def _slide_row(lake: LakeView, slide_id: str) -> Row:
    row: Row = lake.slides().filter(pl.col("slide_id") == slide_id).collect().row(0, named=True)
    return row


def _slide_properties(slide: Row) -> Row:
    """Return the facts of a slide that are known, by wsidata's names; shape is height and width."""
    facts = {
        "shape": [slide["height_px"], slide["width_px"]] if slide["height_px"] else None,
        "mpp": slide["mpp"],
        "magnification": slide["objective"],
        "patient_id": slide["patient_id"],
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def _squidpy_facts(lake: LakeView, slide: Row, tiles: SlideTiles) -> Row:
    """Return the thumbnail as squidpy's picture, with its scale; without one only a tile's side."""
    side = {"spot_diameter_fullres": float(tiles.tile_px_level0)}
    jpeg = lake.pictures(slide["slide_id"])["thumbnail"]
    if jpeg is None or not slide["width_px"]:
        return {"images": {}, "scalefactors": side}
    picture = np.asarray(decoded_thumbnail(jpeg, slide["slide_id"]))
    scale = picture.shape[1] / slide["width_px"]
    return {
        "images": {"hires": picture},
        "scalefactors": {"tissue_hires_scalef": scale, **side},
    }
