"""Writes what CLAM reads: `patches/*.h5`, and `features_<teacher>/{h5_files,pt_files}`.

CLAM counts in pyramid levels, and a lake's tiles may lie between two. So the patches are those
of level 0 at their level-0 size, which every reader of CLAM's files maps to the right region; an
attribute of our own holds the side to which they were reduced.
"""

from typing import Any

import h5py
import numpy as np

from featurestore.interop.foreign_files import load_pt
from featurestore.interop.foreign_slide import FloatArray, InteropError, SlideTiles
from featurestore.interop.readers.clam import H5, OWN_PX, PATCHES, PT
from featurestore.interop.writers.outbox import Outbox
from featurestore.interop.writers.outgoing_slide import MARK, SlideOut, is_done, mark_of


def export_slide(box: Outbox, slide: SlideOut) -> int:
    """Write a slide's coordinates, and two files per teacher; how many files were written."""
    xy, written = slide.tiles.xy, 0
    rel = f"{PATCHES}/{slide.tiles.slide_id}.h5"
    if not is_done(box.path(rel), {"coords": xy.shape}, mark_of(slide), coords=xy):
        with box.file(rel) as path, h5py.File(path, "w") as file:
            coords = file.create_dataset("coords", data=xy)
            for name, attribute in _attrs(slide.tiles, box.shown_path(PATCHES)).items():
                coords.attrs[name] = attribute
            file.attrs[MARK] = mark_of(slide)
        written += 1
    return written + sum(_write_features(box, slide, teacher) for teacher in slide.teachers)


def _attrs(tiles: SlideTiles, folder: str) -> dict[str, Any]:
    attrs: dict[str, Any] = {
        "patch_size": tiles.tile_px_level0,
        "patch_level": 0,
        "downsample": np.array([1.0, 1.0]),
        OWN_PX: tiles.tile_px,
        "name": tiles.slide_id,
        "save_path": folder,
    }
    if tiles.width_px and tiles.height_px:
        size = np.array([tiles.width_px, tiles.height_px])
        attrs |= {"level_dim": size, "downsampled_level_dim": size}
    return attrs


def _write_features(box: Outbox, slide: SlideOut, teacher: str) -> int:
    import torch

    name, xy = slide.tiles.slide_id, slide.tiles.xy
    h5, pt = (f"features_{teacher}/{kind}/{name}.{end}" for kind, end in ((H5, "h5"), (PT, "pt")))
    shape = (len(xy), slide.teachers[teacher].dim)
    mark = mark_of(slide, teacher)
    shapes = {"coords": xy.shape, "features": shape}
    if is_done(box.path(h5), shapes, mark, coords=xy) and _pt_shape(box, pt) == shape:
        return 0
    features: FloatArray = slide.features(teacher).astype(np.float32)
    with box.file(pt) as path:
        torch.save(torch.from_numpy(features), path)
    # The .pt file has no place for a mark; the .h5 comes after it and vouches for both.
    with box.file(h5) as path, h5py.File(path, "w") as file:
        file.create_dataset("features", data=features)
        file.create_dataset("coords", data=xy.astype(np.int32))
        file.attrs[MARK] = mark
    return 2


def _pt_shape(box: Outbox, rel: str) -> tuple[int, ...] | None:
    try:
        return load_pt(box.path(rel), mapped=True).shape
    except InteropError:
        return None
