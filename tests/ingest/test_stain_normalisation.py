"""Stain normalisation: fits against torchstain's numbers, and what it makes of shifted stains."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from openslide import OpenSlide

from ingest.stain import jitter_stains
from ingest.stain_normalisation import (
    LEAST_DENSITY,
    METHODS,
    REFERENCE_LAB,
    REFERENCE_MOST,
    REFERENCE_STAINS,
    densities,
    fitted,
    lab_moments,
    macenko_fit,
)
from tests.conftest import REAL_SLIDE

RgbArray = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def tissue() -> RgbArray:
    """Every 97th pixel of the real slide's tissue [N, 3]."""
    with OpenSlide(REAL_SLIDE) as slide:
        pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3].reshape(-1, 3)
    return pixels[(densities(pixels) >= LEAST_DENSITY).all(axis=1)][::97]


def test_a_fit_and_its_pixels_are_those_of_torchstain(tissue: RgbArray) -> None:
    """Numbers of torchstain 1.4.1, whose percentiles are not interpolated and light not rounded."""
    stains, most = macenko_fit(tissue)
    expected = [[0.8220, 0.1608], [0.4919, 0.9115], [0.2870, 0.3786]]
    np.testing.assert_allclose(stains, expected, atol=2e-4)
    np.testing.assert_allclose(most, [3.2923, 3.1780], rtol=1e-3)
    ours = METHODS["macenko"](tissue)(tissue[None])[0][::3000]
    theirs = [[201, 179, 201], [141, 98, 139], [63, 16, 44], [157, 112, 149], [202, 166, 189],
              [197, 167, 191]]  # fmt: skip
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_normalised_tissue_has_the_stains_of_the_reference(tissue: RgbArray) -> None:
    normalised = {name: make(tissue)(tissue[None])[0] for name, make in METHODS.items()}
    stains, most = macenko_fit(normalised["macenko"])
    np.testing.assert_allclose(stains, REFERENCE_STAINS, atol=0.02)
    np.testing.assert_allclose(most, REFERENCE_MOST, rtol=0.04)
    moments = lab_moments(normalised["reinhard"])
    np.testing.assert_allclose(moments, REFERENCE_LAB, atol=0.02)


def restained(tissue: RgbArray) -> RgbArray:
    """Tissue with less haematoxylin and more eosin."""
    scale = np.array([0.8, 1.25, 1.0], np.float32)
    return jitter_stains(tissue, scale, np.zeros(3, np.float32))


def relit(tissue: RgbArray) -> RgbArray:
    """Tissue as a scanner with other gains of its channels has it."""
    relit_tissue: RgbArray = (tissue * np.array([0.9, 0.75, 0.85])).astype(np.uint8)
    return relit_tissue


@pytest.mark.parametrize(("method", "shift"), [("macenko", restained), ("reinhard", relit)])
def test_shifted_slides_become_alike(
    tissue: RgbArray, method: str, shift: Callable[[RgbArray], RgbArray]
) -> None:
    shifted = shift(tissue)
    one, other = (METHODS[method](pixels)(pixels[None]) for pixels in (tissue, shifted))
    before = np.abs(tissue.astype(int) - shifted).mean()
    after = np.abs(one.astype(int) - other).mean()
    assert before > 5
    assert after < before / 3


def test_a_slide_without_tissue_is_not_fitted() -> None:
    assert fitted("macenko", np.full((2, 32, 32, 3), 240, np.uint8)) is None
    glass = np.full((1, 64, 64, 3), 244, np.uint8)
    noise = np.random.default_rng(0).integers(0, 200, (1, 64, 64, 3), np.uint8)
    normalise = fitted("macenko", np.concatenate([glass, noise]))
    assert normalise is not None
    assert np.abs(normalise(glass).astype(int) - 244).max() <= 6  # glass stays glass
