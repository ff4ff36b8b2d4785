"""Whether a level of a pyramid shows the same picture as finer levels, at the same places.

Level k is compared with the finest level that has at most 8 x its resolution: level 0 for the first
levels, and for coarser levels a level that has passed itself. So a check costs a few tiles, and
the shift of a level adds up to less than two of its own pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

RATIO_MAX = 8.0
# A level may be a pixel wider or narrower for rounding. Beyond that and this share its two scales
# differ; within it, the pictures decide.
SCALES_APART = 0.005
PATCH_PX, PATCH_MIN_PX = 48, 8
MARGIN_PX = 12
# Of squared grey levels. JPEG at quality 30 leaves about 10; a level made by leaving pixels out
# differs from means by a third of the variance after the blur.
NOISE, UNLIKE, MATCH = 36.0, 0.35, 0.1
STRUCTURE = 64.0
CLEARER = 3.0
BLOCK_PX = 16

RgbArray = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
Place = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A square of a level that is compared with a finer level.

    Attributes:
        x: left side, in pixels of the level.
        y: top side, in pixels of the level.
        side: side of the square, in pixels of the level.
    """

    x: int
    y: int
    side: int


def level_scale(full: tuple[int, int], part: tuple[int, int]) -> float:
    """Return the level-0 pixels per pixel of a level; whole where its size allows it.

    4099 px are stored as 1024 at a fourth: openslide calls that 4.0029, and would be a pixel off
    after every 341.

    Args:
        full: width and height of level 0.
        part: width and height of the level.

    >>> level_scale((4099, 3001), (1024, 750))
    4
    """
    scale = (full[0] / part[0] + full[1] / part[1]) / 2
    whole = round(scale)
    ends = zip(full, part, strict=True)
    return whole if all(abs(size / whole - n) <= 1 for size, n in ends) else scale


def scales_differ(full: tuple[int, int], part: tuple[int, int]) -> str:
    """Return in words how a level's scales across and down differ; "" if they are the same.

    Args:
        full: width and height of level 0.
        part: width and height of the level.

    >>> scales_differ((4099, 3001), (1024, 750))
    ''
    >>> scales_differ((4000, 3000), (1000, 700))
    'it is reduced by 4 across and by 4.286 down'
    """
    across, down = (whole / size for whole, size in zip(full, part, strict=True))
    low, high = (
        [whole / max(1, size + one) for whole, size in zip(full, part, strict=True)]
        for one in (1, -1)
    )
    if abs(across / down - 1) <= SCALES_APART or max(low) <= min(high):
        return ""
    return f"it is reduced by {across:.4g} across and by {down:.4g} down"


def reference_level(scales: Sequence[float], level: int, usable: Sequence[int]) -> int:
    """Return the level that a level is to be compared with.

    Args:
        scales: level-0 pixels to one pixel of each level.
        level: number of the level that is to be compared.
        usable: numbers of the levels that may be used, level 0 among them.

    >>> [reference_level([1, 4, 16, 32], level, [0, 1, 2]) for level in (1, 2, 3)]
    [0, 1, 1]
    """
    finer = [other for other in usable if scales[other] < scales[level]]
    near = [other for other in finer if scales[other] * RATIO_MAX >= scales[level]]
    if near:
        return min(near, key=lambda other: scales[other])
    return max(finer, key=lambda other: scales[other], default=0)


def patch_at(place: Place, size: tuple[int, int]) -> Patch | None:
    """Return the square of a level to be compared at a place; None if the level is too small.

    The last row and column are left out: they may hold less than a whole pixel.

    Args:
        place: y and x as shares of the slide.
        size: width and height of the level.
    """
    width, height = size
    side = min(PATCH_PX, width - 1, height - 1)
    if side < PATCH_MIN_PX:
        return None
    y, x = (round(share * n - side / 2) for share, n in zip(place, (height, width), strict=True))
    return Patch(x=min(max(0, x), width - 1 - side), y=min(max(0, y), height - 1 - side), side=side)


def surroundings(patch: Patch, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return x, y, width and height of a patch with its margin, as far as the level reaches."""
    x, y = max(0, patch.x - MARGIN_PX), max(0, patch.y - MARGIN_PX)
    right, bottom = (
        min(n, at + patch.side + MARGIN_PX) for n, at in zip(size, (patch.x, patch.y), strict=True)
    )
    return x, y, right - x, bottom - y


def finer_square(patch: Patch, ratio: float) -> Patch:
    """Return the same square in pixels of a finer level.

    Args:
        patch: the square in pixels of the level.
        ratio: pixels of the finer level to one of the level.
    """
    x, y, side = (round(length * ratio) for length in (patch.x, patch.y, patch.side))
    return Patch(x=x, y=y, side=side)


def pictures_differ(reference: RgbArray, around: RgbArray, x: int, y: int) -> str:
    """Return in words how a patch differs from a finer level's patch; "" if it does not.

    Args:
        reference: the finer level's patch [n, n, 3], reduced to the level's pixels.
        around: the level's patch with its margin.
        x: left edge of the patch in `around`.
        y: top edge of the patch in `around`.
    """
    template, field = (_smooth(picture) for picture in (reference, around))
    area = template.size
    squares = cv2.matchTemplate(field, template, cv2.TM_SQDIFF) / area
    variance = float(template.reshape(-1, 3).var(axis=0).mean())
    beside = squares[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
    near = max(0.0, float(beside.min()))
    best_y, best_x = (int(n) for n in np.unravel_index(int(squares.argmin()), squares.shape))
    best = max(0.0, float(squares[best_y, best_x]))
    shift = (best_x - x, best_y - y)
    elsewhere = variance > STRUCTURE and near > CLEARER * best + CLEARER
    elsewhere = elsewhere and max(map(abs, shift)) > 1
    if elsewhere and best < NOISE + MATCH * variance:
        return f"it is shifted by {shift[0]}, {shift[1]} px"
    if elsewhere or near > NOISE + UNLIKE * variance:
        n = template.shape[0]
        part = field[y : y + n, x : x + n]
        return f"it differs from level 0 by {np.abs(part - template).mean():.0f} grey levels"
    return ""


def _smooth(picture: RgbArray) -> Float32Array:
    """Return a picture without the noise of single pixels, which varies with level reduction."""
    smooth: Float32Array = cv2.blur(picture, (5, 5)).astype(np.float32)
    return smooth


def structured_places(picture: RgbArray) -> list[Place]:
    """Return the place with the most structure in each quarter of a picture, as shares of it."""
    side = max(1, min(BLOCK_PX, min(picture.shape[:2]) // 4))
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    rows, columns = grey.shape[0] // side, grey.shape[1] // side
    blocks = grey[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return richest_places(blocks.std(axis=(1, 3)))


def richest_places(values: npt.NDArray[np.floating]) -> list[Place]:
    """Return the place of the largest value in each quarter of a grid, as shares of its sides.

    >>> richest_places(np.eye(4))[0]
    (0.125, 0.125)
    """
    rows, columns = values.shape
    places = []
    for top, bottom in ((0, (rows + 1) // 2), (rows // 2, rows)):
        for left, right in ((0, (columns + 1) // 2), (columns // 2, columns)):
            quarter = values[top:bottom, left:right]
            y, x = np.unravel_index(int(quarter.argmax()), quarter.shape)
            places.append(((top + int(y) + 0.5) / rows, (left + int(x) + 0.5) / columns))
    return list(dict.fromkeys(places))
