"""Scores of a tile that a query can filter by: pen, brightness, saturation and focus.

They are read off maps at overview resolution, so that tiles which are copied without being decoded
have them too. Focus needs finer pixels: it is taken from a level near 2 mpp, where a blur of 2 um
is still plain (docs/tissue.md).
"""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from ingest.grid import Grid, nested_sums
from ingest.tissue.overview_tissue import Tissue

FOCUS_MPP = 2.0
# Grey levels squared per pixel: the noise of a scanner and of JPEG on bare glass.
NOISE_ENERGY = 2.0
# The largest eigenvalue of the five-point Laplacian.
FINEST = 8.0

BoolArray = npt.NDArray[np.bool_]
Float32Array = npt.NDArray[np.float32]
RgbArray = npt.NDArray[np.uint8]


def score_maps(overview: RgbArray, tissue: Tissue) -> dict[str, Float32Array]:
    """Scores of each pixel of an overview [H, W, 3], as maps [H, W].

    Returns:
        pen: 1 where there is ink of a pen, else 0, so that the mean over a tile is the share of it
            under ink. It is the same whether or not ink was taken out of the tissue, and is to be
            averaged over the whole tile, since ink that was taken out is not tissue.
        brightness: luminance (ITU-R BT.601 weights of R, G, B as they are stored), 0 is black and
            1 is white. Glass has about 0.95.
        saturation: of HSV, 0 is grey and 1 a pure colour. Glass has about 0.01, H&E 0.1 to 0.6.
    """
    brightness = cv2.cvtColor(overview, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    saturation = cv2.cvtColor(overview, cv2.COLOR_RGB2HSV)[..., 1].astype(np.float32) / 255
    return {
        "pen": tissue.pen.astype(np.float32),
        "brightness": brightness,
        "saturation": saturation,
    }


def focus_map(
    blocks: Iterable[tuple[int, int, RgbArray]], shape: tuple[int, int], factor: int
) -> Float32Array:
    """Sharpness at overview resolution, from pieces of the slide at about 2 mpp.

    Focus is the energy of the Laplacian of luminance over that of its gradient, which is the mean
    square spatial frequency: from 0 (nothing but slow changes) to 1 (a checkerboard of pixels),
    higher is sharper. A stain of half the strength halves both, so their ratio stays. In-focus
    H&E has 0.25 to 0.4 and the same out of focus by a Gaussian of 2 um 0.1 to 0.15; since a
    scanner's optics and its JPEGs count too, thresholds hold within one scanner. Where there is no
    structure (bare glass) the value means nothing.

    Args:
        blocks: (y, x, pixels [h, w, 3]), where y, x, h and w are multiples of `factor`, but for h
            and w of blocks at the end of the slide. Pixels at the border of a block don't see
            their neighbours in the next.
        shape: height and width of the overview.
        factor: side of a pixel of the overview in pixels of the blocks.

    Returns:
        [H, W]; NaN where no block was given.
    """
    focus = np.full(shape, np.nan, np.float32)
    for y, x, pixels in blocks:
        found = _sharpness(pixels, factor)
        to = focus[y // factor :, x // factor :][: found.shape[0], : found.shape[1]]
        to[:] = found[: to.shape[0], : to.shape[1]]
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
    """Means of squares of pixels; what is missing at the end counts as 0, in every map alike."""
    beyond = [(0, -n % factor) for n in values.shape]
    values = np.pad(values, beyond) if beyond != [(0, 0), (0, 0)] else values
    size = (values.shape[1] // factor, values.shape[0] // factor)
    means: Float32Array = cv2.resize(values, size, interpolation=cv2.INTER_AREA)
    return means


def tile_means(
    values: Float32Array, scale: float, grids: Sequence[Grid], weights: BoolArray | None = None
) -> list[Float32Array]:
    """Mean of a map over the area of each tile, [grid.height, grid.width] per grid.

    Pixels that a tile covers in part count in part. NaN in the map and what lies outside it do not
    count; a tile without any value is NaN.

    Args:
        values: [H, W] map of the whole slide.
        scale: side of one of its pixels in level-0 pixels.
        grids: nested, finest first.
        weights: [H, W]; the mean is over these pixels alone (tissue) in tiles that have any.
    """
    known = ~np.isnan(values)
    means = _means(values, known, scale, grids)
    if weights is None:
        return means
    chosen = _means(values, known & weights, scale, grids)
    return [np.where(np.isnan(c), m, c) for c, m in zip(chosen, means, strict=True)]


def _means(
    values: Float32Array, counted: BoolArray, scale: float, grids: Sequence[Grid]
) -> list[Float32Array]:
    area = nested_sums(counted, scale, grids)
    sums = nested_sums(np.where(counted, values, np.float32(0)), scale, grids)
    found = []
    for a, s in zip(area, sums, strict=True):
        means: Float32Array = np.full(a.shape, np.nan, np.float32)
        # An area below a millionth of a pixel is what is left of rounding.
        np.divide(s, a, out=means, where=a > 1e-6, casting="same_kind")
        found.append(means)
    return found
