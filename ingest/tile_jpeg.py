"""JPEGs of tiles, as the lake stores them."""

import numpy as np
import numpy.typing as npt
import simplejpeg

from featurestore import LakeConfig

RgbArray = npt.NDArray[np.uint8]


def encode_tile(rgb: RgbArray, config: LakeConfig) -> bytes:
    """Return the JPEG of a tile [H, W, 3], in the quality and subsampling of the lake."""
    jpeg: bytes = simplejpeg.encode_jpeg(
        rgb,
        quality=config.jpeg_quality,
        colorspace="RGB",
        colorsubsampling=config.jpeg_subsampling,
        fastdct=False,
    )
    return jpeg


def decode_tile(jpeg: bytes | memoryview) -> RgbArray:
    """Return the pixels [H, W, 3] of a stored tile."""
    rgb: RgbArray = simplejpeg.decode_jpeg(jpeg, colorspace="RGB")
    return rgb
