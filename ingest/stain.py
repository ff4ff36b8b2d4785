"""Stain variants of tiles: haematoxylin, eosin and the rest made stronger or weaker at random.

Source: Tellez et al. 2018 (whole-slide mitosis detection, HED jitter), with the stain vectors of
Ruifrok and Johnston 2001: optical densities are taken apart into three stains, each is scaled by
1 +- SIGMA and shifted by +- SIGMA, and they are put together again.

Letters in names: B tiles in a batch, H W pixels, S stains.
"""

import numpy as np
import numpy.typing as npt

SIGMA = 0.05
STAIN_VECTORS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
STAIN_VECTORS /= np.linalg.norm(STAIN_VECTORS, axis=1, keepdims=True)
STAIN_UNMIXING = np.linalg.inv(STAIN_VECTORS)
LEAST_LIGHT = 1e-6

RgbArray = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


def stain_variant(tiles: RgbArray, tile_id: Int64Array, variant: int) -> RgbArray:
    """Return one stain variant of each tile; it depends on pixels, `tile_id` and `variant` alone.

    Args:
        tiles: RGB [B, H, W, 3].
        tile_id: keys of the tiles [B].
        variant: number of the variant, from 1; 0 would be the tile itself.
    """
    return np.stack(
        [
            jitter_stains(tile, *stain_jitter(key, variant))
            for tile, key in zip(tiles, tile_id.tolist(), strict=True)
        ]
    )


def stain_jitter(tile_id: int, variant: int) -> tuple[FloatArray, FloatArray]:
    """Return the random scale [S] and shift [S] of each stain."""
    random = np.random.default_rng((tile_id, variant))
    scale = random.uniform(1 - SIGMA, 1 + SIGMA, 3)
    return scale.astype(np.float32), random.uniform(-SIGMA, SIGMA, 3).astype(np.float32)


def jitter_stains(rgb: RgbArray, scale: FloatArray, shift: FloatArray) -> RgbArray:
    """Return pixels [H, W, 3] with scaled and shifted stains; densities are to base 10."""
    light = np.maximum(rgb.astype(np.float32) / 255, LEAST_LIGHT)
    density = -np.log10(light).reshape(-1, 3)
    # Apart, scaled, and together again is one 3 x 3 matrix and one vector.
    mixed = (STAIN_UNMIXING * scale @ STAIN_VECTORS).astype(np.float32)
    moved = density @ mixed + (shift @ STAIN_VECTORS).astype(np.float32)
    stained: RgbArray = np.clip(10.0**-moved * 255 + 0.5, 0, 255).astype(np.uint8)
    varied: RgbArray = stained.reshape(rgb.shape)
    return varied
