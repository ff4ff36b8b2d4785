"""Writes `<slide>.zarr` in SpatialData's layout, as wsidata and lazyslide keep a slide.

`shapes/tissues` and `shapes/tiles` are polygons in level-0 pixels, `tables/<teacher>_tiles` an
AnnData per teacher with its features as X. Each AnnData opens by itself, too. One teacher's
features of one slide are in memory at a time, as float32.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.interop.foreign_slide import SlideTiles
from featurestore.interop.writers.anndata_table import (
    REGION,
    TILES,
    TISSUES,
    check_packages,
    lake_facts,
    tile_obs,
    tile_spec,
)
from featurestore.interop.writers.outbox import Outbox
from featurestore.interop.writers.outgoing_slide import MARK, SlideOut, mark_of
from featurestore.interop.writers.wkb import geometry, squares, write_shapes

VERSION = {"version": "0.2", "spatialdata_software_version": "0.7.3"}
SHAPES_VERSION, TABLE_VERSION = "0.3", "0.2"

Shapes = tuple[dict[str, pa.Array], list[str]]  # columns, and the kinds of geometry in them


def export_slide(box: Outbox, slide: SlideOut) -> int:
    """Write a slide's store; 1 if it was written, 0 if it is there and complete.

    Raises:
        InteropError: the packages for it are not installed.
    """
    check_packages("anndata", "zarr")
    rel, mark = f"{slide.tiles.slide_id}.zarr", _mark(slide)
    if _is_done(box.path(rel), slide, mark):
        return 0
    with box.folder(rel) as path:
        _write_anndata(path, slide, mark)
    return 1


def _mark(slide: SlideOut) -> str:
    mark = mark_of(slide, *sorted(slide.teachers))
    return f"{mark}-{slide.annotations.mark}" if slide.annotations.mark else mark


def _is_done(path: Path, slide: SlideOut, mark: str) -> bool:
    import zarr

    try:
        root = zarr.open_group(path, mode="r")
        if root.attrs.get(MARK) != _root_mark(slide.tiles, mark):
            return False
        if not len(slide.tiles):
            return True
        shapes = pq.read_metadata(path / "shapes" / TILES / "shapes.parquet")
        return shapes.num_rows == len(slide.tiles) and all(
            _has_features(root, name, slide) for name in slide.teachers
        )
    except (OSError, KeyError, ValueError, pa.ArrowInvalid):
        return False


def _has_features(root: Any, teacher: str, slide: SlideOut) -> bool:  # noqa: ANN401 - untyped
    features = root[f"tables/{_table(teacher)}/X"]
    shape = (len(slide.tiles), slide.teachers[teacher].dim)
    return bool(features.shape == shape and features.nchunks_initialized == features.nchunks)


def _write_anndata(path: Path, slide: SlideOut, mark: str) -> None:
    import zarr

    tiles = slide.tiles
    attrs = {
        "spatialdata_attrs": VERSION,
        "tile_spec": {TILES: tile_spec(tiles)},
        MARK: _root_mark(tiles, mark),
    }
    root = zarr.open_group(path, mode="w", zarr_format=3, attributes=attrs)
    shapes = root.create_group("shapes")
    # SpatialData has no word for a table or a shape without rows.
    shape_tables = {TILES: _tile_shapes(tiles)} if len(tiles) else {}
    tissue = slide.tissue()
    if tissue is not None and tissue["features"]:
        shape_tables[TISSUES] = _tissue_shapes(tissue)
    for name in shape_tables:
        shapes.create_group(name, attributes=_shapes_attrs())
    tables = root.create_group("tables")
    for teacher in sorted(slide.teachers) if len(tiles) else ():
        _write_table(tables, slide, teacher)
    for name, (columns, kinds) in shape_tables.items():
        write_shapes(path / "shapes" / name / "shapes.parquet", columns, kinds)


def _tile_shapes(tiles: SlideTiles) -> Shapes:
    columns = {
        "tile_id": pa.array(np.arange(len(tiles))),
        "x": pa.array(tiles.x),
        "y": pa.array(tiles.y),
        "geometry": squares(tiles.xy, tiles.tile_px_level0),
    }
    return columns, ["Polygon"]


def _tissue_shapes(tissue: Mapping[str, Any]) -> Shapes:
    geometries = [feature["geometry"] for feature in tissue["features"]]
    columns = {
        "tissue_id": pa.array(np.arange(len(geometries))),
        "geometry": pa.array([geometry(one) for one in geometries], pa.binary()),
    }
    return columns, sorted({one["type"] for one in geometries})


def _shapes_attrs() -> dict[str, Any]:
    axes = [{"name": axis, "type": "space", "unit": "unit"} for axis in ("x", "y")]
    identity = {
        "type": "identity",
        "input": {"name": "xy", "axes": axes},
        "output": {"name": "global", "axes": axes},
    }
    return {
        "encoding-type": "ngff:shapes",
        "axes": ["x", "y"],
        "coordinateTransformations": [identity],
        "spatialdata_attrs": {"version": SHAPES_VERSION},
    }


def _write_table(tables: Any, slide: SlideOut, teacher: str) -> None:  # noqa: ANN401
    import anndata
    from anndata.io import write_elem

    tiles, name = slide.tiles, _table(teacher)
    made = anndata.AnnData(
        X=slide.features(teacher).astype(np.float32),
        obs=tile_obs(tiles, np.arange(len(tiles)), slide.annotations.tiles()),
        obsm={"spatial": tiles.xy},
        uns={
            "spatialdata_attrs": REGION,
            "slidelake": lake_facts(
                tiles,
                {teacher: slide.teachers[teacher].identity},
                slide.annotations.values,
            ),
        },
    )
    # One chunk is one object; sharding them is left to a later format.
    with anndata.settings.override(auto_shard_zarr_v3=False):
        write_elem(tables, name, made)
    version = {"spatialdata-encoding-type": "ngff:regions_table", "version": TABLE_VERSION}
    tables[name].attrs.update({**version, **REGION})


def _table(teacher: str) -> str:
    # SpatialData's names have letters, digits, and _ - . only.
    return f"{re.sub('[:@]', '-', teacher)}_tiles"


def _root_mark(tiles: SlideTiles, mark: str) -> dict[str, Any]:
    return {
        "mark": mark,
        "slide_id": tiles.slide_id,
        "mpp": tiles.mpp,
        "level0_mpp": tiles.level0_mpp,
    }
