"""Writes what STAMP reads: `<teacher>/<slide>.h5`, coordinates in microns from the top left."""

import h5py
import numpy as np

from featurestore.interop.foreign_slide import InteropError
from featurestore.interop.writers.outbox import Outbox
from featurestore.interop.writers.outgoing_slide import MARK, SlideOut, is_done, mark_of


def export_slide(box: Outbox, slide: SlideOut) -> int:
    """Write a file per teacher; how many were written.

    Raises:
        InteropError: the slide's level-0 mpp is not known, so that its microns are not.
    """
    tiles = slide.tiles
    if tiles.level0_mpp is None or tiles.effective_mpp is None:
        msg = (
            f"slide '{tiles.slide_id}': STAMP's coordinates are microns, and the lake does not "
            "know the slide's mpp; import it again with --level0-mpp"
        )
        raise InteropError(msg)
    xy_um = (tiles.xy * tiles.level0_mpp).astype(np.float32)
    return sum(_write_features(box, slide, teacher, xy_um) for teacher in slide.teachers)


def _write_features(box: Outbox, slide: SlideOut, teacher: str, xy_um: np.ndarray) -> int:
    tiles, mark = slide.tiles, mark_of(slide, teacher)
    rel = f"{teacher}/{tiles.slide_id}.h5"
    shapes = {"coords": xy_um.shape, "feats": (len(xy_um), slide.teachers[teacher].dim)}
    if is_done(box.path(rel), shapes, mark, coords=xy_um):
        return 0
    with box.file(rel) as path, h5py.File(path, "w") as file:
        file.create_dataset("coords", data=xy_um)
        file.create_dataset("feats", data=slide.features(teacher).astype(np.float16))
        # No stamp_version: STAMP refuses files newer than itself, and none of it made this one.
        file.attrs["extractor"] = teacher
        file.attrs["unit"] = "um"
        file.attrs["tile_size_um"] = (tiles.effective_mpp or 0.0) * tiles.tile_px
        file.attrs["tile_size_px"] = tiles.tile_px
        file.attrs["feat_type"] = "tile"
        file.attrs[MARK] = mark
    return 1
