"""Tiles that a lake did not keep, cut from the slide where this machine has it.

They are encoded as the lake's tiles are, so that a region is the same whether its background was
kept or not. A slide at a URL is not fetched for them: that costs more than all that is stored.
"""

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from featurestore import LakeConfig, Store, open_lake
from ingest.errors import SlideError
from ingest.grid import Grid
from ingest.readers.slide_reader import SlideReader, read_options
from ingest.tile_jpeg import decode_tile

WHITE = (255, 255, 255)
#: Columns of `slides` that say where a slide is and how it was read.
ORIGIN = ("uri", "fingerprint", "cut_with")

RgbArray = npt.NDArray[np.uint8]
Row = Mapping[str, Any]


class MissingTiles:
    """Tiles of one grid of a slide, kept or not. Safe for several threads at once.

    The slide is opened when the first tile is asked for.

    Args:
        store: the lake's files.
        config: settings of the lake.
        slide: row of the slide in the catalog, with `origin`: its `ORIGIN` in `slides`.
        mpp: microns per pixel of the grid.
    """

    def __init__(self, store: Store, config: LakeConfig, slide: Row, mpp: float) -> None:
        self._store, self._config, self._slide, self._mpp = store, config, slide, mpp
        self._lock, self._stack = threading.Lock(), contextlib.ExitStack()
        self._opened: tuple[SlideReader, Grid] | None = None
        self._tried = False
        self._background: tuple[int, int, int] | None = None

    def tile(self, grid_y: int, grid_x: int) -> RgbArray | None:
        """Return the pixels [H, W, 3] of a tile; None if the slide can't be reached or read."""
        with self._lock:
            if not self._tried:
                self._tried, self._opened = True, self._open()
            if self._opened is None:
                return None
            from ingest.cut import jpegs  # here, as it imports all that finds tissue

            slide, grid = self._opened
            try:
                jpeg, _ = next(jpegs(slide, grid, self._config, np.array([[grid_y, grid_x]])))
            except SlideError:
                return None
            return decode_tile(jpeg)

    @property
    def background(self) -> tuple[int, int, int]:
        """Return the slide's colour without tissue, as RGB: what its thumbnail has there."""
        with self._lock:
            if self._background is None:
                pictures = open_lake(self._store.uri).pictures(self._slide["slide_id"])
                self._background = background_of(pictures["thumbnail"], pictures["tissue_mask"])
            return self._background

    def _open(self) -> tuple[SlideReader, Grid] | None:
        """Open the slide; None if it is not on this machine, or no longer what was cut."""
        from ingest.cut import lake_grids
        from ingest.readers.open_slide import open_slide
        from ingest.remote.local_copy import local_slide
        from ingest.remote.remote_files import is_local
        from ingest.select.cut_settings import CutSettings
        from ingest.select.sources import fingerprint

        origin = self._slide["origin"]
        if not is_local(origin["uri"]):
            return None
        options = read_options(asdict(CutSettings.from_json(origin["cut_with"] or "{}")))
        with contextlib.ExitStack() as stack:
            try:
                if fingerprint(origin["uri"])[1] != origin["fingerprint"]:
                    return None
                local = stack.enter_context(local_slide(origin["uri"]))
                slide = stack.enter_context(open_slide(local.path, options, image=local.image))
                grids = {grid.mpp: grid for grid in lake_grids(slide, self._config)}
            except (SlideError, OSError):
                return None
            grid = grids[self._mpp]
            # An earlier slidelake may have read another mpp from the file.
            if (grid.side_px * self._ratio, grid.step_px * self._ratio) != (
                (self._slide["tile_px_level0"], self._slide["grid_px_level0"])
            ):
                return None
            self._stack = stack.pop_all()
            return slide, grid

    @property
    def _ratio(self) -> int:
        return self._config.ratio(self._slide["mpp"]) // self._config.ratio(self._mpp)

    def close(self) -> None:
        """Close the slide."""
        with self._lock:
            self._tried, self._opened = True, None
            self._stack.close()


def background_of(thumbnail: bytes | None, tissue_mask: bytes | None) -> tuple[int, int, int]:
    """Return the median colour of a thumbnail's pixels without tissue; white if there are none.

    Args:
        thumbnail: JPEG of the slide.
        tissue_mask: PNG of the same size, which is 0 where there is no tissue.
    """
    if thumbnail is None or tissue_mask is None:
        return WHITE
    pixels = decode_tile(thumbnail)
    mask = cv2.imdecode(np.frombuffer(tissue_mask, np.uint8), cv2.IMREAD_GRAYSCALE)
    if mask is None or mask.shape != pixels.shape[:2]:
        return WHITE
    outside = pixels[mask == 0]
    if not len(outside):
        return WHITE
    red, green, blue = np.median(outside, axis=0).round().astype(int).tolist()
    return red, green, blue
