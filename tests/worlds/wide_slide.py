"""A slide with a pyramid, big enough for shares of it to mean something: the real one, repeated."""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import openslide

from examples.slide_writer import TILE_PX, aperio_pages, encode_tile, write_tiff
from tests.conftest import REAL_SLIDE


def write_wide_slide(path: Path, *, columns: int = 3, rows: int = 2) -> Path:
    """So many copies of the real slide side by side, at 0.5 mpp with levels 1, 4 and 16."""
    with openslide.OpenSlide(REAL_SLIDE) as slide:
        one = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    pixels = np.tile(one, (rows, columns, 1))
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % TILE_PX), (0, -width % TILE_PX), (0, 0)), mode="edge")
    streams = [
        encode_tile(np.ascontiguousarray(padded[y : y + TILE_PX, x : x + TILE_PX]))
        for y in range(0, height, TILE_PX)
        for x in range(0, width, TILE_PX)
    ]
    reduced = [_reduced(pixels, by) for by in (4, 16)]
    with path.open("wb") as file:
        write_tiff(file, aperio_pages("wide", (width, height), 0.5, streams, reduced))
    return path


def _reduced(pixels: npt.NDArray[np.uint8], by: int) -> npt.NDArray[np.uint8]:
    """Means of whole squares; what is left over at the ends is dropped, as scanners do it."""
    height, width = (n // by for n in pixels.shape[:2])
    whole = pixels[: height * by, : width * by]
    small: npt.NDArray[np.uint8] = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
    return small
