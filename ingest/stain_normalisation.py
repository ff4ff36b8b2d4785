"""Stain normalisation: the stains of a slide, fitted on some of its tiles, become a reference's.

A slide is fitted, not a tile: a tile with little tissue has too few pixels for a fit, and fitting
each alone would remove differences between tiles that are no matter of staining. Macenko et al.
2009 (a method for normalizing histology slides), with the reference and the constants of their
code; Reinhard et al. 2001 (color transfer between images) with HistomicsTK's reference.

Letters in names: N pixels, B tiles in a batch, H W pixels, S stains (haematoxylin, eosin).
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Normalisation = Literal["macenko", "reinhard"]
FloatArray = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
RgbArray = npt.NDArray[np.uint8]
#: A function from pixels [B, H, W, 3] to pixels of the same shape.
Normaliser = Callable[[RgbArray], RgbArray]

#: Raised when a change makes other pixels; it is in the identity of columns.
VERSION = 1
#: Tiles of a slide that it is fitted on, drawn by their keys, and pixels of them.
SAMPLE_TILES, SAMPLE_PIXELS = 32, 1 << 18
#: Tissue is denser than this in every channel; a slide with fewer pixels of it is left as it is.
LEAST_DENSITY, LEAST_PIXELS = 0.15, 1000
#: Light of the glass, of 255; percentiles at both ends of the angles, and of the concentrations.
GLASS, ANGLE_PERCENT, MOST_PERCENT = 240.0, 1.0, 99.0
#: Densities of the reference's stains [3, S], and their greatest concentrations [S] (Macenko).
REFERENCE_STAINS = np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]])
REFERENCE_MOST = np.array([1.9705, 1.0308])
#: Mean and standard deviation [2, 3] of l, alpha, beta (Reinhard): HistomicsTK's, of a region of
#: TCGA-A2-A3XS-DX1 (Amgad et al. 2019).
REFERENCE_LAB = np.array([[8.74108109, -0.12440419, 0.0444982], [0.6135447, 0.10989545, 0.0286032]])
#: From RGB to the responses of cones, and from their logarithms to l, alpha, beta (Reinhard).
RGB_TO_LMS = np.array(
    [[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]]
)
LMS_TO_LAB = np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3], [6], [2]])


def normalisation_identity(normalisation: Normalisation) -> dict[str, Any]:
    """Return the part of a column's identity that states how stains were normalised."""
    return {"normalisation": {"method": normalisation, "version": VERSION, "tiles": SAMPLE_TILES}}


def fitted(normalisation: Normalisation, tiles: RgbArray) -> Normaliser | None:
    """Return the normaliser of a slide; None if too little of the tiles is tissue.

    Args:
        normalisation: name of the method.
        tiles: some tiles of the slide [B, H, W, 3].
    """
    pixels = tiles.reshape(-1, 3)
    pixels = pixels[:: -(-len(pixels) // SAMPLE_PIXELS)]
    tissue = pixels[(densities(pixels) >= LEAST_DENSITY).all(axis=1)]
    if len(tissue) < LEAST_PIXELS:
        return None
    return METHODS[normalisation](tissue)


def densities(pixels: RgbArray) -> FloatArray:
    """Return optical densities, to base e, of pixels of any shape, as Macenko's code has them."""
    table = -np.log((np.arange(256) + 1) / GLASS)
    of_pixels: FloatArray = table.astype(np.float32)[pixels]
    return of_pixels


def macenko_fit(tissue: RgbArray) -> tuple[FloatArray, FloatArray]:
    """Return the stains' densities [3, S] and greatest concentrations [S] of tissue [N, 3].

    The stains are the extreme angles in the plane of the two largest principal components of the
    densities; haematoxylin, which absorbs more red, comes first.
    """
    dense = densities(tissue).astype(np.float64)
    _, vectors = np.linalg.eigh(np.cov(dense, rowvar=False))
    plane = vectors[:, 1:]
    along = dense @ plane
    angles = np.arctan2(along[:, 1], along[:, 0])
    ends = np.percentile(angles, [ANGLE_PERCENT, 100 - ANGLE_PERCENT])
    stains = plane @ np.stack([np.cos(ends), np.sin(ends)])
    stains = stains[:, np.argsort(-stains[0])]
    most = np.percentile(dense @ np.linalg.pinv(stains).T, MOST_PERCENT, axis=0)
    return stains.astype(np.float32), most.astype(np.float32)


def _macenko(tissue: RgbArray) -> Normaliser:
    stains, most = macenko_fit(tissue)
    # Apart, scaled, and together again in the reference's stains is one 3 x 3 matrix.
    scaled = REFERENCE_STAINS * (REFERENCE_MOST / np.maximum(most, 1e-3))
    matrix = (scaled @ np.linalg.pinv(stains)).T.astype(np.float32)

    def normalise(tiles: RgbArray) -> RgbArray:
        return _as_pixels(GLASS * np.exp(-(densities(tiles) @ matrix)))

    return normalise


def _as_pixels(light: FloatArray) -> RgbArray:
    """Return light as pixels, rounded."""
    pixels: RgbArray = np.clip(light + 0.5, 0, 255).astype(np.uint8)
    return pixels


def lab_moments(tissue: RgbArray) -> Float64Array:
    """Return mean and standard deviation of l, alpha, beta [2, 3] of tissue [N, 3]."""
    lab = np.log(_lms(tissue)).astype(np.float64) @ LMS_TO_LAB.T
    return np.stack([lab.mean(axis=0), lab.std(axis=0)])


def _lms(pixels: RgbArray) -> FloatArray:
    """Return the responses of cones to pixels of any shape; black counts as a light of 1."""
    light = np.maximum(pixels, 1).astype(np.float32)
    lms: FloatArray = light @ RGB_TO_LMS.T.astype(np.float32)
    return lms


def _reinhard(tissue: RgbArray) -> Normaliser:
    moments = lab_moments(tissue)
    scale = REFERENCE_LAB[1] / np.maximum(moments[1], 1e-6)
    shift = REFERENCE_LAB[0] - moments[0] * scale
    # To l, alpha, beta, moved, and back is one 3 x 3 matrix and one vector on the logarithms.
    back = np.linalg.inv(LMS_TO_LAB.T)
    matrix = (LMS_TO_LAB.T * scale @ back).astype(np.float32)
    offset = (shift @ back).astype(np.float32)
    to_rgb = np.linalg.inv(RGB_TO_LMS.T).astype(np.float32)

    def normalise(tiles: RgbArray) -> RgbArray:
        return _as_pixels(np.exp(np.log(_lms(tiles)) @ matrix + offset) @ to_rgb)

    return normalise


METHODS: dict[str, Callable[[RgbArray], Normaliser]] = {
    "macenko": _macenko,
    "reinhard": _reinhard,
}
"""The methods by name: from the pixels of tissue [N, 3] of a slide to its normaliser."""
