"""Stain variants of tiles, against the published steps one by one."""

import numpy as np
import openslide
import pytest

from ingest.stain import SIGMA, jitter_stains, stain_jitter, stain_variant
from tests.conftest import REAL_SLIDE

HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


@pytest.fixture(scope="module")
def tiles() -> np.typing.NDArray[np.uint8]:
    with openslide.OpenSlide(REAL_SLIDE) as slide:
        pictures = [
            slide.read_region((x, 1000), 0, (64, 64)).convert("RGB") for x in (400, 800, 1200)
        ]
    return np.stack([np.asarray(tile) for tile in pictures])


def test_a_variant_is_that_of_the_paper(tiles: np.typing.NDArray[np.uint8]) -> None:
    """Densities, stains by solving, scale and shift, back: in float64, pixel by pixel."""
    vectors = HED / np.sqrt((HED**2).sum(axis=1))[:, None]
    scale, shift = stain_jitter(77, 2)
    ours = jitter_stains(tiles[0], scale, shift)
    for y, x in ((0, 0), (13, 50), (63, 63)):
        density = -np.log10(np.maximum(tiles[0, y, x] / 255, 1e-6))
        stains = np.linalg.solve(vectors.T, density)
        moved = (stains * scale.astype(float) + shift.astype(float)) @ vectors
        expected = np.clip(10**-moved * 255, 0, 255)
        assert np.abs(ours[y, x] - expected).max() <= 0.51


def test_variants_depend_on_the_key_and_the_number_alone(
    tiles: np.typing.NDArray[np.uint8],
) -> None:
    keys = np.array([5, 6, 7])
    one, two = (stain_variant(tiles, keys, number) for number in (1, 2))
    np.testing.assert_array_equal(one[1:], stain_variant(tiles[1:], keys[1:], 1))
    assert (one != two).mean() > 0.3
    assert 0.5 < np.abs(one.astype(int) - tiles).mean() < 20
    same = jitter_stains(tiles[0], np.ones(3, np.float32), np.zeros(3, np.float32))
    np.testing.assert_array_equal(same, tiles[0])
    scales = np.array([stain_jitter(key, 1)[0] for key in range(2000)])
    assert abs(scales.mean() - 1) < 0.005
    assert 0.94 < 1 - SIGMA <= scales.min() < scales.max() <= 1 + SIGMA < 1.06
