"""Slides with a level that shows something else: padded, cropped, turned, shifted, darker."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import openslide
import tifffile

from examples.slide_writer import TILE_PX, Page, encode_tile, shared_tables, write_tiff
from tests.conftest import REAL_SLIDE

Pixels = npt.NDArray[np.uint8]
SIZE = (2048, 2816)  # of level 0: what a fourth and a sixteenth divide
WHITE = 243


def real_pixels() -> Pixels:
    """Tissue with glass at one side, [H, W, 3]."""
    width, height = SIZE
    with openslide.OpenSlide(REAL_SLIDE) as slide:
        return np.array(slide.read_region((0, 0), 0, SIZE).convert("RGB"))[:height, :width]


def reduced(pixels: Pixels, factor: int) -> Pixels:
    """Means of factor x factor pixels."""
    size = (pixels.shape[1] // factor, pixels.shape[0] // factor)
    small: Pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return small


def _into(level: Pixels, part: Pixels) -> Pixels:
    whole: Pixels = cv2.resize(part, level.shape[1::-1], interpolation=cv2.INTER_AREA)
    return whole


def _padded(level: Pixels) -> Pixels:
    """The picture at nine tenths of its size, on white."""
    height, width = (n * 9 // 10 for n in level.shape[:2])
    out = np.full_like(level, WHITE)
    out[:height, :width] = cv2.resize(level, (width, height), interpolation=cv2.INTER_AREA)
    return out


def _shifted(level: Pixels) -> Pixels:
    out = np.full_like(level, WHITE)
    out[:, 8:] = level[:, :-8]
    return out


# Each takes the right level and gives a wrong one of the same size, but for `narrow`.
FAULTS: dict[str, Callable[[Pixels], Pixels]] = {
    "padded": _padded,
    "cropped": lambda level: _into(level, level[level.shape[0] // 10 :, level.shape[1] // 10 :]),
    "rotated": lambda level: level[::-1, ::-1],
    "flipped": lambda level: level[:, ::-1],
    "upside-down": lambda level: level[::-1],
    "shifted": _shifted,
    "shifted-down": lambda level: np.roll(level, 8, axis=0),
    "blank": lambda level: np.full_like(level, WHITE),
    "darker": lambda level: (level * 0.8).astype(np.uint8),
    "narrow": lambda level: cv2.resize(
        level, (level.shape[1] * 19 // 20, level.shape[0]), interpolation=cv2.INTER_AREA
    ),
}


def write_slide(path: Path, levels: list[Pixels], *, jpeg: bool) -> Path:
    """Write a pyramid of 0.5 mpp: JPEG tiles, which are read natively, or deflated ones."""
    levels = [np.ascontiguousarray(level) for level in levels]
    if jpeg:
        return _write_jpegs(path, levels)
    common: dict[str, Any] = {"photometric": "rgb", "compression": "zlib"}
    common |= {"tile": (256, 256), "resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as tiff:
        for number, level in enumerate(levels):
            tiff.write(level, subfiletype=int(number > 0), compressionargs={"level": 1}, **common)
    return path


def _write_jpegs(path: Path, levels: list[Pixels]) -> Path:
    pages = []
    for number, level in enumerate(levels):
        height, width = level.shape[:2]
        padding = ((0, -height % TILE_PX), (0, -width % TILE_PX), (0, 0))
        whole = np.pad(level, padding, mode="edge")
        places = [(y, x) for y in range(0, height, TILE_PX) for x in range(0, width, TILE_PX)]
        tiles = [np.ascontiguousarray(whole[y : y + TILE_PX, x : x + TILE_PX]) for y, x in places]
        pages.append(
            Page(
                width_px=width,
                height_px=height,
                mpp=0.5,
                description="Aperio Image Library v12.0.15\r\n"
                + ("|AppMag = 20|MPP = 0.5000" if not number else "-> level"),
                chunks=[encode_tile(tile) for tile in tiles],
                tables=shared_tables(),
            )
        )
    with path.open("wb") as file:
        write_tiff(file, pages)
    return path
