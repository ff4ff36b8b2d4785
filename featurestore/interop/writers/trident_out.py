"""Writes what TRIDENT writes: coordinates with their attributes, features per encoder, tissue."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featurestore.interop.foreign_slide import MPP_TOLERANCE, Int64Array, SlideTiles
from featurestore.interop.readers.trident import FEATURES, PATCHES
from featurestore.interop.writers.outbox import Outbox
from featurestore.interop.writers.outgoing_slide import MARK, SlideOut, is_done, mark_of


def export_slide(box: Outbox, slide: SlideOut) -> int:
    """Write a slide's coordinates, its tissue, and a file per teacher; how many were written."""
    grid, name = _grid_name(slide.tiles), slide.tiles.slide_id
    attrs = _coords_attrs(slide.tiles, grid)
    xy, written = slide.tiles.xy, 0
    rel = f"{grid}/patches/{name}{PATCHES}"
    if not is_done(box.path(rel), {"coords": xy.shape}, mark_of(slide), coords=xy):
        with box.file(rel) as path, h5py.File(path, "w") as file:
            _write_coords(file, xy, attrs, mark_of(slide))
        written += 1
    written += _write_tissue(box, slide)
    return written + sum(_write_features(box, slide, t, grid, attrs) for t in slide.teachers)


def _write_features(
    box: Outbox, slide: SlideOut, teacher: str, grid: str, attrs: Mapping[str, Any]
) -> int:
    rel, xy = f"{grid}/{FEATURES}{teacher}/{slide.tiles.slide_id}.h5", slide.tiles.xy
    shape = (len(xy), slide.teachers[teacher].dim)
    mark = mark_of(slide, teacher)
    if is_done(box.path(rel), {"coords": xy.shape, "features": shape}, mark, coords=xy):
        return 0
    with box.file(rel) as path, h5py.File(path, "w") as file:
        _write_coords(file, xy, attrs, mark)
        dataset = file.create_dataset("features", data=slide.features(teacher).astype(np.float32))
        dataset.attrs["name"] = slide.tiles.slide_id
        dataset.attrs["savetodir"] = str(Path(box.shown_path(rel)).parent)
        dataset.attrs["encoder"] = teacher
    return 1


def _write_coords(file: h5py.File, xy: Int64Array, attrs: Mapping[str, Any], mark: str) -> None:
    dataset = file.create_dataset("coords", data=xy)
    for key, attribute in attrs.items():
        dataset.attrs[key] = "None" if attribute is None else attribute
    file.attrs[MARK] = mark


def _write_tissue(box: Outbox, slide: SlideOut) -> int:
    tissue = slide.tissue()
    if tissue is None:
        return 0
    text = json.dumps(tissue)
    rel = f"contours_geojson/{slide.tiles.slide_id}.geojson"
    if box.path(rel).is_file() and box.path(rel).read_text() == text:
        return 0
    with box.file(rel) as path:
        path.write_text(text)
    return 1


def _coords_attrs(tiles: SlideTiles, grid: str) -> dict[str, Any]:
    target = _magnification(tiles.mpp)
    return {
        "patch_size": tiles.tile_px,
        "patch_size_level0": tiles.tile_px_level0,
        "level0_magnification": _level0_magnification(tiles, target),
        "target_magnification": target,
        "overlap": tiles.attrs.get("overlap", 0),
        "name": tiles.slide_id,
        "savetodir": grid,
        "level0_width": tiles.width_px,
        "level0_height": tiles.height_px,
    }


def _grid_name(tiles: SlideTiles) -> str:
    overlap = tiles.attrs.get("overlap", 0)
    return f"{_magnification(tiles.mpp):g}x_{tiles.tile_px}px_{overlap}px_overlap"


def _magnification(mpp: float) -> int | float:
    return _nominal_magnification(10 / mpp)


def _level0_magnification(tiles: SlideTiles, target: float) -> int | float:
    """Return the number from which TRIDENT computes a tile's level-0 side."""
    exact = target * tiles.tile_px_level0 / tiles.tile_px
    tidy = _nominal_magnification(exact)
    return tidy if tiles.tile_px * tidy // target == tiles.tile_px_level0 else exact


def _nominal_magnification(magnification: float) -> int | float:
    """Return a magnification, rounded if it is within 2 % of a whole number, as TRIDENT does."""
    near = round(magnification)
    return (
        near if near and abs(magnification / near - 1) <= MPP_TOLERANCE else round(magnification, 4)
    )
