"""Stains and scanners: what each does to pixels, against formulas and other libraries."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from distill.evaluate.measures.perturb import (
    COLOURS,
    SCANNERS,
    STAINS,
    blurred,
    coloured,
    compressed,
    stained,
    unchanged,
    variants,
)


def tiles(count: int = 2, side: int = 64) -> np.ndarray:
    """Smooth pink and violet tiles, as tissue is."""
    rng = np.random.default_rng(0)
    rough = rng.normal(size=(count, side, side, 3))
    smooth = np.stack([gaussian_filter(tile, (4, 4, 0)) for tile in rough]) * 8
    base = np.array([190, 130, 175])
    drawn: np.ndarray = np.clip(base + 45 * smooth, 0, 255).astype(np.uint8)
    return drawn


NAMED = [
    *((f"stain {name}", change) for name, change in STAINS.items()),
    *((f"scanner {name}", change) for name, change in SCANNERS.items()),
]


@pytest.mark.parametrize(("name", "change"), NAMED, ids=[name for name, _ in NAMED])
def test_each_is_a_function_of_each_tile_alone(name: str, change: object) -> None:
    assert callable(change)
    before = tiles(3)
    kept = before.copy()
    after = change(before)
    assert after.dtype == np.uint8
    assert after.shape == before.shape
    np.testing.assert_array_equal(before, kept)
    np.testing.assert_array_equal(change(before[1:2])[0], after[1])
    assert np.array_equal(after, before) == name.endswith("original")


def test_a_stain_is_the_same_for_all_tiles() -> None:
    """A slide is stained as a whole: equal pixels stay equal, wherever they are."""
    flat = np.full((2, 4, 4, 3), (180, 120, 170), np.uint8)
    for change in STAINS.values():
        assert len(np.unique(change(flat).reshape(-1, 3), axis=0)) == 1


def test_a_strong_stain_is_farther_than_a_mild_one() -> None:
    before = tiles()
    far = {
        name: np.abs(change(before).astype(float) - before).mean()
        for name, change in STAINS.items()
    }
    assert 0 < far["mild_1"] < far["strong"]
    assert 0 < far["mild_2"] < far["strong"]
    assert far["strong"] > 8


def test_seeds_give_other_stains() -> None:
    before = tiles()
    assert not np.array_equal(stained(0.05, 1)(before), stained(0.05, 2)(before))


@pytest.mark.parametrize("period_px", [8, 16])
def test_blur_passes_the_contrast_of_its_mtf(period_px: int) -> None:
    x = np.arange(256)
    wave = 128 + 100 * np.sin(2 * np.pi * x / period_px)
    tile = np.repeat(np.repeat(wave[None, :, None], 256, 0), 3, 2)[None].round().astype(np.uint8)
    sigma = 1.2
    passed = (blurred(sigma)(tile)[0, 128, 64:192, 0].astype(float) - 128).max() / 100
    assert passed == pytest.approx(np.exp(-2 * (np.pi * sigma / period_px) ** 2), abs=0.015)


def test_blur_equals_that_of_scipy() -> None:
    before = tiles(1)
    expected = gaussian_filter(before[0].astype(float), (1.2, 1.2, 0), mode="mirror")
    assert np.abs(blurred(1.2)(before)[0] - expected).max() <= 1.5


def test_colour_keeps_black_and_white_and_is_the_matrix_and_the_power() -> None:
    ends = np.stack([np.zeros((4, 4, 3)), np.full((4, 4, 3), 255)]).astype(np.uint8)
    np.testing.assert_array_equal(coloured(1.25)(ends), ends)
    np.testing.assert_allclose(COLOURS.sum(axis=1), 1, atol=1e-6)
    pixel = np.array([200, 100, 50], np.uint8)
    expected = (COLOURS.astype(float) @ (pixel / 255)) ** 1.25 * 255
    scanned = coloured(1.25)(pixel.reshape(1, 1, 1, 3))[0, 0, 0]
    assert np.abs(scanned - expected).max() <= 0.51


def test_worse_jpeg_is_farther() -> None:
    before = tiles()
    errors = [
        np.square(compressed(quality)(before).astype(float) - before).mean()
        for quality in (10, 40, 95)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 2 * errors[2] > 0


def test_every_stain_is_scanned_by_every_scanner() -> None:
    before = tiles()
    by_variant = dict(variants(before))
    assert len(by_variant) == len(STAINS) * len(SCANNERS) == 16
    np.testing.assert_array_equal(by_variant["original", "original"], unchanged(before))
    expected = SCANNERS["blur"](STAINS["strong"](before))
    np.testing.assert_array_equal(by_variant["strong", "blur"], expected)
