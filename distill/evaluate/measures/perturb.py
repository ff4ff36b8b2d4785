"""Stand-ins for another stain or another scanner: small pure functions of a tile's pixels.

They are used where PLISM's slides, stained and scanned again and again, are not at hand. A stain
or a scanner treats all tiles alike, so each is a fixed change, not a random one per tile. The sizes
are ours, chosen so that tiles stay plausible; none was fitted to a scanner.

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
    """The tiles themselves."""
    return tiles_BHW3


def stained(size: float, seed: int) -> Perturb:
    """Another stain: haematoxylin, eosin and the rest scaled and shifted, the same for all tiles.

    Args:
        size: by up to how much, as `ingest.stain` does it with 0.05.
        seed: of the six numbers.
    """
    random = np.random.default_rng((2018, seed))
    # At the rim of the range: a draw near 0 would be no other stain.
    sign = random.choice([-1.0, 1.0], (2, 3))
    drawn = (size * sign * random.uniform(0.5, 1, (2, 3))).astype(np.float32)
    # Shifts of the background turn white into grey, while a stain colours tissue alone.
    scale, shift = 1 + drawn[0], 0.2 * drawn[1]

    def changed(tiles_BHW3: RgbArray) -> RgbArray:
        return np.stack([jitter_stains(tile, scale, shift) for tile in tiles_BHW3])

    return changed


def blurred(sigma_px: float) -> Perturb:
    """A scanner whose optics pass less detail: a Gaussian, so MTF(f) = exp(-2 (pi sigma f)^2).

    Args:
        sigma_px: of the Gaussian, in pixels of a tile.
    """

    def changed(tiles_BHW3: RgbArray) -> RgbArray:
        return np.stack([cv2.GaussianBlur(tile, (0, 0), sigmaX=sigma_px) for tile in tiles_BHW3])

    return changed


def coloured(gamma: float) -> Perturb:
    """A scanner of another sensor and transfer curve: channels are mixed, then taken to a power.

    Args:
        gamma: above 1 makes tiles darker; black and white stay as they are.
    """

    def changed(tiles_BHW3: RgbArray) -> RgbArray:
        light = np.clip(tiles_BHW3.astype(np.float32) / 255 @ COLOURS.T, 0, 1) ** gamma
        stored: RgbArray = np.clip(light * 255 + 0.5, 0, 255).astype(np.uint8)
        return stored

    return changed


def compressed(quality: int) -> Perturb:
    """A scanner that stores tiles as JPEG once more, with colour at half the resolution.

    Args:
        quality: libjpeg's, 1 to 100.
    """

    def again(tile_HW3: RgbArray) -> RgbArray:
        jpeg = simplejpeg.encode_jpeg(
            np.ascontiguousarray(tile_HW3), quality=quality, colorsubsampling="420"
        )
        decoded: RgbArray = simplejpeg.decode_jpeg(jpeg, colorspace="RGB")
        return decoded

    def changed(tiles_BHW3: RgbArray) -> RgbArray:
        return np.stack([again(tile) for tile in tiles_BHW3])

    return changed


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
    """Yield tiles of every stain as every scanner gives them, by both names."""
    for stain, dyed in STAINS.items():
        dyed_BHW3 = dyed(tiles_BHW3)
        for scanner, scanned in SCANNERS.items():
            yield (stain, scanner), scanned(dyed_BHW3)
