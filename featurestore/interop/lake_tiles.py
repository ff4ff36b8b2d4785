"""Reads that import and export need of single slides: tiles' places, whole rows, the tissue."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from featurestore.commits.lance_ledger import among_names
from featurestore.errors import DamageError
from featurestore.ids import mpp_name
from featurestore.interop.foreign_slide import FloatArray, Int64Array
from featurestore.interop.writers.outline import mask_geojson
from featurestore.lake import Lake
from featurestore.read.bags import Bag
from featurestore.read.selection import Selection
from featurestore.storage.read_errors import reading
from featurestore.tables.schema import (
    SLIDES,
    TILE_COLUMNS,
    TILE_FIELDS,
    features_table,
)

Row = dict[str, Any]


def tile_places(lake: Lake, row: Mapping[str, Any]) -> tuple[Int64Array, Int64Array]:
    """Return keys [N] and level-0 coordinates [N, 2] of a slide's tiles, sorted by key.

    Args:
        lake: the lake that holds them.
        row: the catalog's row of the slide's tiles.

    Raises:
        DamageError: the stored tiles differ from the catalog's.
    """
    if not row["tiles"]:
        return np.zeros(0, np.int64), np.zeros((0, 2), np.int64)
    subject = f"slide {row['slide_id']} at mpp {mpp_name(row['mpp'])}"
    selection = Selection(pl.DataFrame([dict(row)]), row["mpp"])
    lake.first_reads.compare(lake.row_reader(mpp=row["mpp"]), selection, [0], [])
    fragment = lake.table(features_table(row["mpp"])).get_fragment(row["fragment"])
    with reading(lake.store, f"{subject}: its tiles can't be read"):
        rows = fragment.to_table(columns=["tile_id", "x", "y"], filter=f"slide = {row['slide']}")
    if rows.num_rows != row["tiles"]:
        msg = (
            f"{subject}: {rows.num_rows} tiles are "
            f"there, the catalog has {row['tiles']}; run slidelake verify"
        )
        raise DamageError(msg)
    table = pl.DataFrame(rows).sort("tile_id")
    xy = np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1).astype(np.int64)
    return table["tile_id"].to_numpy(), xy


def tile_table(lake: Lake, row: Mapping[str, Any]) -> pa.Table:
    """Return all tile columns of a slide's tiles, sorted by key; see `tile_places`."""
    if not row["tiles"]:
        return pa.schema(TILE_FIELDS).empty_table()
    fragment = lake.table(features_table(row["mpp"])).get_fragment(row["fragment"])
    subject = f"slide {row['slide_id']} at mpp {mpp_name(row['mpp'])}"
    with reading(lake.store, f"{subject}: its tiles can't be read"):
        where = f"slide = {row['slide']}"
        rows: pa.Table = fragment.to_table(columns=list(TILE_COLUMNS), filter=where)
    return rows.sort_by("tile_id")


def whole_rows(bag: Bag, keys: Int64Array) -> FloatArray:
    """Return a bag's features for all keys of its slide [N, D]; NaN where it has none."""
    if np.array_equal(bag.tile_id, keys):
        return bag.features
    features = np.full((len(keys), bag.features.shape[1]), np.nan, np.float16)
    features[np.searchsorted(keys, bag.tile_id)] = bag.features
    return features


def slide_rows(
    lake: Lake, slide_ids: Sequence[str], columns: Sequence[str] | None = None
) -> dict[str, Row]:
    """Return rows of `slides` by slide_id, with all columns or only `columns`, by an index."""
    if not slide_ids:
        return {}
    names = None if columns is None else ["slide_id", *columns]
    table = lake.table(SLIDES).to_table(columns=names, filter=among_names(slide_ids))
    return {row["slide_id"]: row for row in table.to_pylist()}


def tissue_of(lake: Lake, slide_id: str) -> dict[str, Any] | None:
    """Return the slide's tissue as a FeatureCollection in level-0 pixels; None if unknown.

    The polygons that came with an import, else the outline of the tissue mask.
    """
    names = ["tissue_geojson", "tissue_mask", "width_px", "height_px"]
    row = slide_rows(lake, [slide_id], names)[slide_id]
    if row["tissue_geojson"]:
        outlines: dict[str, Any] = json.loads(row["tissue_geojson"])
        return outlines
    if not (row["tissue_mask"] and row["width_px"] and row["height_px"]):
        return None
    import cv2

    mask = cv2.imdecode(np.frombuffer(row["tissue_mask"], np.uint8), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        msg = f"the tissue mask of slide {slide_id} is no picture"
        raise DamageError(msg)
    return mask_geojson(mask > 0, row["width_px"], row["height_px"])
