"""Perturbations that imitate another stain or another scanner: pure functions of tiles' pixels.

They are used where PLISM's slides, stained and scanned several times, are not at hand. A stain
or a scanner treats all tiles alike, so each is a fixed change, not a random one per tile. The sizes
were chosen so that tiles stay plausible; none was fitted to a scanner.

Shape letters: B tiles in a batch, H W pixels, S stains.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from ingest import jitter_stains

STRONG = 0.2  # four times the jitter that students are trained with
# From the colours of one scanner to those of another: rows sum to 1, so white stays white.
COLOURS = np.array([[0.90, 0.08, 0.02], [0.05, 0.90, 0.05], [0.02, 0.13, 0.85]], np.float32)

RgbArray = npt.NDArray[np.uint8]
Perturb = Callable[[RgbArray], RgbArray]


def unchanged(tiles_BHW3: RgbArray) -> RgbArray:
    """Return the tiles unchanged."""
    return tiles_BHW3


def stained(size: float, seed: int) -> Perturb:
    """Return a change to another stain, the same for all tiles.

    Haematoxylin, eosin and the residual are scaled and shifted.

    Args:
        size: largest change of scale and shift; `ingest.stain` uses 0.05.
        seed: seed of the six numbers.
    """
    random = np.random.default_rng((2018, seed))
    # Near the ends of the range, since a draw near 0 would hardly change the stain.
    sign = random.choice([-1.0, 1.0], (2, 3))
    drawn = (size * sign * random.uniform(0.5, 1, (2, 3))).astype(np.float32)
    # Shifts of the background turn white into grey, while a stain colours tissue alone.
    scale, shift = 1 + drawn[0], 0.2 * drawn[1]

    def change_tiles(tiles_BHW3: RgbArray) -> RgbArray:
        return np.stack([jitter_stains(tile, scale, shift) for tile in tiles_BHW3])

    return change_tiles


def blurred(sigma_px: float) -> Perturb:
    """Return the change of a scanner with less sharp optics: MTF(f) = exp(-2 (pi sigma f)^2).

    Args:
        sigma_px: standard deviation of the Gaussian blur, in pixels of a tile.
    """

    def change_tiles(tiles_BHW3: RgbArray) -> RgbArray:
        return np.stack([cv2.GaussianBlur(tile, (0, 0), sigmaX=sigma_px) for tile in tiles_BHW3])

    return change_tiles


def coloured(gamma: float) -> Perturb:
    """Return the change of another sensor: channels are mixed, then raised to a power.

    Args:
        gamma: the power; above 1 tiles become darker, black and white stay the same.
    """

    def change_tiles(tiles_BHW3: RgbArray) -> RgbArray:
        light = np.clip(tiles_BHW3.astype(np.float32) / 255 @ COLOURS.T, 0, 1) ** gamma
        stored: RgbArray = np.clip(light * 255 + 0.5, 0, 255).astype(np.uint8)
        return stored

    return change_tiles


def compressed(quality: int) -> Perturb:
    """Return the change of a scanner that encodes tiles as JPEG again, colour at half resolution.

    Args:
        quality: quality setting of libjpeg, 1 to 100.
    """

    def reencoded(tile_HW3: RgbArray) -> RgbArray:
        jpeg = simplejpeg.encode_jpeg(
            np.ascontiguousarray(tile_HW3), quality=quality, colorsubsampling="420"
        )
        decoded: RgbArray = simplejpeg.decode_jpeg(jpeg, colorspace="RGB")
        return decoded

    def change_tiles(tiles_BHW3: RgbArray) -> RgbArray:
        return np.stack([reencoded(tile) for tile in tiles_BHW3])

    return change_tiles


STAINS: Mapping[str, Perturb] = MappingProxyType(
    {
        "original": unchanged,
        "mild_1": stained(0.05, 1),
        "mild_2": stained(0.05, 2),
        "strong": stained(STRONG, 3),
    }
)
SCANNERS: Mapping[str, Perturb] = MappingProxyType(
    {
        "original": unchanged,
        "blur": blurred(1.2),
        "colour": coloured(1.25),
        "jpeg": compressed(40),
    }
)


def variants(tiles_BHW3: RgbArray) -> Iterator[tuple[tuple[str, str], RgbArray]]:
    """Yield the names of stain and scanner, and the changed tiles, for every pair of both."""
    for stain, restain in STAINS.items():
        dyed_BHW3 = restain(tiles_BHW3)
        for scanner, rescan in SCANNERS.items():
            yield (stain, scanner), rescan(dyed_BHW3)
