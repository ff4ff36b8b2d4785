"""Isolated cells, as on a cytology slide: what the overview at 16 mpp is too coarse for.

A cell is 8 to 60 um wide: half a pixel to four of the overview, where a majority of 7 x 7 pixels
and pieces of at least 64 x 64 um are needed, and a hundredth to a tenth of a tile of 128 um. So
cells are looked for at about 2 mpp by their colour, block by block, and a pixel of the overview
counts as tissue if it holds a part of one.
"""

import cv2
import numpy as np
import numpy.typing as npt

from ingest.readers.slide_reader import SlideReader
from ingest.tissue.overview_tissue import (
    CELL_COLOUR,
    BoolArray,
    RgbArray,
    colour_of,
    tinted_glass,
    white_balanced,
)

CELL_MPP = 2.0
CELL_AREA_UM2 = 30.0
BLOCK_PX = 128


def find_cells(slide: SlideReader, overview: RgbArray, scale: float) -> BoolArray:
    """Return the pixels [H, W] of an overview that hold a cell or a part of one.

    Args:
        slide: the open slide.
        overview: RGB overview [H, W, 3], for the tint of its glass.
        scale: side of one pixel of the overview in level-0 pixels.
    """
    factor = max(1, round(scale * slide.mpp / CELL_MPP))
    glass = tinted_glass(overview)
    height, width = overview.shape[:2]
    holds = np.zeros((height, width), bool)
    for y in range(0, height, BLOCK_PX):
        for x in range(0, width, BLOCK_PX):
            part = holds[y : y + BLOCK_PX, x : x + BLOCK_PX]
            pixels = slide.piece(scale / factor, x, y, part.shape[1], part.shape[0], factor)
            if glass is not None:
                pixels = white_balanced(pixels, glass)
            cells = _cells(pixels, scale * slide.mpp / factor)
            part[:] = cells.reshape(part.shape[0], factor, part.shape[1], factor).any(axis=(1, 3))
    return holds


def _cells(pixels: RgbArray, mpp: float) -> npt.NDArray[np.bool_]:
    stained = (colour_of(pixels) > CELL_COLOUR).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(stained, connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] * mpp**2 >= CELL_AREA_UM2
    keep[0] = False
    cells: npt.NDArray[np.bool_] = keep[labels]
    return cells
