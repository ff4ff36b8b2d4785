"""Focus of a slide as a map, from a level near 2 mpp, where a blur of 2 um is still plain.

Maps at overview resolution are too coarse for it, and full resolution is not needed
(docs/tissue.md).
"""

from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import numpy.typing as npt

from ingest.readers.slide_reader import SlideReader

FOCUS_MPP = 2.0
# 32 pixels at 16 mpp are 512 um, which is one stored tile of 256 px at 2 mpp.
BLOCK_PX = 32
# Grey levels squared per pixel: the noise of a scanner and of JPEG on bare glass.
NOISE_ENERGY = 2.0
# The largest eigenvalue of the five-point Laplacian.
FINEST = 8.0

BoolArray = npt.NDArray[np.bool_]
Float32Array = npt.NDArray[np.float32]
RgbArray = npt.NDArray[np.uint8]


def slide_focus(slide: SlideReader, tissue: BoolArray, scale: float) -> Float32Array:
    """Return the sharpness of a slide [H, W] at overview resolution; NaN off the tissue.

    Args:
        slide: the open slide.
        tissue: mask of the tissue [H, W], at overview resolution.
        scale: side of one pixel of the mask in level-0 pixels.

    Raises:
        SlideError: the pixels can't be read.
    """
    factor = _divisor(scale, scale * slide.mpp / FOCUS_MPP)
    pixels = (
        (y * factor, x * factor, slide.piece(scale / factor, x, y, width, height, factor))
        for y, x, height, width in _blocks(tissue, BLOCK_PX)
    )
    return focus_map(pixels, tissue.shape, factor)


def _divisor(scale: float, limit: float) -> int:
    """Return the largest whole number up to `limit` that divides `scale`, if that is whole."""
    most = max(1, round(limit))
    if scale != int(scale):
        return most
    return max(n for n in range(1, most + 1) if not int(scale) % n)


def _blocks(tissue: BoolArray, side: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (y, x, height, width) of the squares of an overview that hold tissue."""
    height, width = tissue.shape
    for y in range(0, height, side):
        for x in range(0, width, side):
            if tissue[y : y + side, x : x + side].any():
                yield y, x, min(side, height - y), min(side, width - x)


def focus_map(
    blocks: Iterable[tuple[int, int, RgbArray]], shape: tuple[int, ...], factor: int
) -> Float32Array:
    """Return the sharpness at overview resolution, from pieces of the slide at about 2 mpp.

    Focus is the energy of the Laplacian of luminance over that of its gradient, which is the mean
    square spatial frequency: from 0 (nothing but slow changes) to 1 (a checkerboard of pixels),
    higher is sharper. A stain of half the strength halves both, so their ratio stays. In-focus
    H&E has 0.25 to 0.4 and the same out of focus by a Gaussian of 2 um 0.1 to 0.15; since a
    scanner's optics and its JPEGs count too, thresholds hold within one scanner. Where there is no
    structure (bare glass) the value means nothing.

    Args:
        blocks: (y, x, pixels [h, w, 3]), where y, x, h and w are multiples of `factor`, but for h
            and w of blocks at the end of the slide. Pixels at the border of a block are filtered
            without their neighbours in the next.
        shape: height and width of the overview.
        factor: side of a pixel of the overview in pixels of the blocks.

    Returns:
        The sharpness [H, W]; NaN outside all blocks.
    """
    focus = np.full(shape, np.nan, np.float32)
    for y, x, pixels in blocks:
        sharpness = _sharpness(pixels, factor)
        part = focus[y // factor :, x // factor :][: sharpness.shape[0], : sharpness.shape[1]]
        part[:] = sharpness[: part.shape[0], : part.shape[1]]
    return focus


def _sharpness(pixels: RgbArray, factor: int) -> Float32Array:
    light = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    curved = cv2.Laplacian(light, cv2.CV_32F, borderType=cv2.BORDER_REPLICATE) ** 2
    slope = np.zeros_like(light)
    slope[:, :-1] += (light[:, 1:] - light[:, :-1]) ** 2
    slope[:-1] += (light[1:] - light[:-1]) ** 2
    curved, energy = (_block_means(a, factor) for a in (curved, slope + NOISE_ENERGY))
    sharpness: Float32Array = (curved / (FINEST * energy)).astype(np.float32)
    return sharpness


def _block_means(values: Float32Array, factor: int) -> Float32Array:
    """Return means of squares of pixels; missing pixels at the end count as 0 in every map."""
    beyond = [(0, -n % factor) for n in values.shape]
    values = np.pad(values, beyond) if beyond != [(0, 0), (0, 0)] else values
    size = (values.shape[1] // factor, values.shape[0] // factor)
    means: Float32Array = cv2.resize(values, size, interpolation=cv2.INTER_AREA)
    return means
