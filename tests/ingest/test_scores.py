"""Scores of tiles: against brute force, against theory, and against the other libraries."""

import colorsys
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from simplejpeg import decode_jpeg, encode_jpeg
from sklearn.metrics import roc_auc_score

from ingest.grid import Grid, plan_grids
from ingest.readers.open_slide import open_slide
from ingest.scores.focus import FOCUS_MPP, RgbArray, focus_map
from ingest.scores.score_table import SCORES, SlideView
from ingest.scores.tile_means import tile_means
from ingest.tissue.overview_tissue import Tissue, find_tissue
from tests.conftest import REAL_SLIDE
from tests.ingest.test_ingest_pure import grid_of

if TYPE_CHECKING:
    from ingest.readers.slide_reader import SlideReader

Float32Array = npt.NDArray[np.float32]


# ---------------------------------------------------------------------- means


@given(
    h=st.integers(1, 40),
    w=st.integers(1, 40),
    side=st.integers(3, 60),
    seed=st.integers(0, 2**32 - 1),
    weighed=st.sampled_from([None, 0.02, 0.3]),
)
def test_means_are_over_exact_areas(
    h: int, w: int, side: int, seed: int, weighed: float | None
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(5, 2, (h, w)).astype(np.float32)
    values[rng.random((h, w)) < 0.2] = np.nan
    weights = None if weighed is None else rng.random((h, w)) < weighed
    scale = 8  # a pixel of the map is 8 level-0 pixels
    grid = grid_of(-(-w * scale // side), -(-h * scale // side), side)
    means = tile_means(values, scale, [grid], weights)[0]
    np.testing.assert_allclose(means, slow_means(values, scale, grid, weights), rtol=1e-4)
    assert means.dtype == np.float32


def slow_means(
    values: Float32Array, scale: int, grid: Grid, weights: npt.NDArray[np.bool_] | None
) -> npt.NDArray[np.float64]:
    """Every level-0 pixel, one tile after the other."""
    pixels = np.kron(values.astype(np.float64), np.ones((scale, scale)))
    chosen = np.isfinite(pixels)
    if weights is not None:
        chosen &= np.kron(weights, np.ones((scale, scale), bool))
    means = np.full((grid.height, grid.width), np.nan)
    for y in range(grid.height):
        for x in range(grid.width):
            cut = (
                slice(y * grid.side_px, (y + 1) * grid.side_px),
                slice(x * grid.side_px, (x + 1) * grid.side_px),
            )
            for some in (chosen[cut], np.isfinite(pixels[cut])):
                if some.any():
                    means[y, x] = pixels[cut][some].mean()
                    break
    return means


def test_tile_without_any_value_is_nan() -> None:
    values = np.full((2, 4), np.nan, np.float32)
    values[:, 3] = 7
    means = tile_means(values, 1.0, [grid_of(2, 1, 2)], np.zeros((2, 4), bool))[0]
    np.testing.assert_array_equal(means, [[np.nan, 7]])


# ----------------------------------------------------------------------- maps


def maps_of(overview: RgbArray, tissue: Tissue) -> dict[str, Float32Array]:
    """Return the maps of the scores that need no slide beside its overview."""
    no_slide = cast("SlideReader", None)
    view = SlideView(slide=no_slide, overview=overview, scale=1.0, tissue=tissue)
    maps = {name: SCORES[name].slide_map for name in ("pen", "brightness", "saturation")}
    return {name: slide_map(view) for name, slide_map in maps.items() if slide_map}


def test_brightness_and_saturation_are_those_of_other_libraries() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    maps = maps_of(pixels, find_tissue(pixels, 16.0))
    grey = np.asarray(Image.fromarray(pixels).convert("L")) / 255
    np.testing.assert_allclose(maps["brightness"], grey, atol=1.01 / 255)
    full = [[colorsys.rgb_to_hsv(*pixel)[1] for pixel in row] for row in pixels.tolist()]
    np.testing.assert_allclose(maps["saturation"], full, atol=0.6 / 255)
    assert {name: values.dtype.name for name, values in maps.items()} == {
        "pen": "float32",
        "brightness": "float32",
        "saturation": "float32",
    }


def test_pen_score_is_there_whether_or_not_pen_is_taken_out() -> None:
    picture = np.full((300, 400, 3), 243, np.uint8)
    picture[50:250, 50:150] = (225, 160, 200)
    picture[50:250, 250:300] = (60, 120, 190)
    grid = grid_of(4, 3, 100)
    for veto in (True, False):
        tissue = find_tissue(picture, 16.0, pen_veto=veto)
        share = tile_means(maps_of(picture, tissue)["pen"], 1.0, [grid])[0]
        assert share[:, :2].max() == 0
        np.testing.assert_allclose(share[1, 2:], [0.5, 0], atol=0.03)


# ---------------------------------------------------------------------- focus


def focus_of(grey: npt.NDArray[np.float64], factor: int = 64) -> float:
    pixels = np.clip(grey, 0, 255).round().astype(np.uint8)[..., None].repeat(3, -1)
    shape = (-(-pixels.shape[0] // factor), -(-pixels.shape[1] // factor))
    return float(np.median(focus_map([(0, 0, pixels)], shape, factor)))


@pytest.mark.parametrize("period", [3, 4, 6, 10, 20])
def test_focus_of_a_wave_is_its_square_frequency(period: float) -> None:
    """The Laplacian of a wave of angular frequency w is itself times 2 cos w - 2."""
    wave = 128 + 100 * np.sin(2 * np.pi * np.arange(512) / period + 0.4)
    expected = (2 - 2 * np.cos(2 * np.pi / period)) / 8
    for grey in (np.tile(wave, (512, 1)), np.tile(wave, (512, 1)).T):
        assert focus_of(grey) == pytest.approx(expected, rel=0.03, abs=0.001)


def test_focus_ends_at_0_and_1() -> None:
    y, x = np.mgrid[:512, :512]
    assert focus_of(255.0 * ((x + y) % 2)) == pytest.approx(1, abs=0.01)
    assert focus_of(np.full((512, 512), 200.0)) == 0
    assert focus_of(x / 4.0) < 0.2
    # White noise: E[w2^2] / E[w2] of the two-dimensional spectrum is 20 / 4.
    noise = np.random.default_rng(0).normal(128, 30, (512, 512))
    assert focus_of(noise) == pytest.approx(5 / 8, rel=0.02)


def blocks_of(pixels: RgbArray, side: int) -> Iterator[tuple[int, int, RgbArray]]:
    for y in range(0, pixels.shape[0], side):
        for x in range(0, pixels.shape[1], side):
            yield y, x, pixels[y : y + side, x : x + side]


def test_blocks_land_where_they_belong() -> None:
    with open_slide(str(REAL_SLIDE)) as slide:
        pixels, _ = slide.overview(FOCUS_MPP)
        pixels = pixels[:-3, :-5]  # the end of the slide is no multiple of the factor
    shape = (-(-pixels.shape[0] // 8), -(-pixels.shape[1] // 8))
    whole = focus_map([(0, 0, pixels)], shape, 8)
    parts = focus_map(blocks_of(pixels, 128), shape, 8)
    assert not np.isnan(whole).any()
    np.testing.assert_array_equal(parts[1:15, 17:31], whole[1:15, 17:31])
    assert np.abs(parts - whole).mean() < 0.01  # pixels on borders don't see across
    some = focus_map([(128, 256, pixels[128:256, 256:384])], shape, 8)
    np.testing.assert_array_equal(some[16:32, 32:48], parts[16:32, 32:48])
    some[16:32, 32:48] = np.nan
    assert np.isnan(some).all()


def real_focus(sigma_um: float, strength: float = 1.0) -> Float32Array:
    """Focus of the real slide's tiles of 128 um that hold tissue, blurred and bleached first."""
    with open_slide(str(REAL_SLIDE)) as slide:
        pixels, scale = slide.overview(FOCUS_MPP)
        grid = plan_grids(slide.size_px, slide.mpp, 256, {0.5: 1})[0.5]
        mpp = slide.mpp * scale
    pixels = (243 * (np.maximum(pixels, 1) / 243) ** strength).clip(0, 255).astype(np.uint8)
    if sigma_um:
        pixels = cv2.GaussianBlur(pixels, (0, 0), sigma_um / mpp)
    pixels = decode_jpeg(encode_jpeg(pixels, quality=80))
    height, width = pixels.shape[0] // 8, pixels.shape[1] // 8
    small = cv2.resize(
        pixels[: height * 8, : width * 8], (width, height), interpolation=cv2.INTER_AREA
    )
    mask = find_tissue(small, 16.0).mask
    focus = focus_map([(0, 0, pixels[: height * 8, : width * 8])], mask.shape, 8)
    tissue = tile_means(mask.astype(np.float32), 8 * scale, [grid])[0]
    return tile_means(focus, 8 * scale, [grid], mask)[0][tissue > 0.5]


def test_blur_of_two_microns_is_told_from_sharp_on_real_tissue() -> None:
    sharp = real_focus(0)
    blurs = {sigma: real_focus(sigma) for sigma in (1.0, 2.0, 4.0)}
    medians = [np.median(sharp), *(np.median(blurred) for blurred in blurs.values())]
    assert medians == sorted(medians, reverse=True)
    assert 0.25 < medians[0] < 0.5
    assert medians[2] < 0.18
    for sigma, least in ((1.0, 0.9), (2.0, 0.99)):
        truth = np.r_[np.ones(len(sharp)), np.zeros(len(blurs[sigma]))]
        assert roc_auc_score(truth, np.r_[sharp, blurs[sigma]]) > least


def test_focus_does_not_follow_the_strength_of_the_stain() -> None:
    full, faint = real_focus(0), real_focus(0, strength=0.4)
    assert np.median(faint) == pytest.approx(np.median(full), rel=0.1)
