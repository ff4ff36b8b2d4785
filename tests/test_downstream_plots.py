"""Figures are PNGs, and what they show is where it belongs."""

import io

import numpy as np
import pytest
from PIL import Image
from sksurv.compare import compare_survival
from sksurv.util import Surv

from downstream import UndefinedMetricError, attention_png, km_png, roc_png
from downstream.plots import attention_overlay, logrank_p, roc_band


def size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        assert image.format == "PNG"
        return image.size


def test_roc_png() -> None:
    rng = np.random.default_rng(0)
    label = np.arange(24) % 2
    curves = {
        name: (label, label + rng.normal(0, spread, 24)) for name, spread in (("a", 1), ("b", 3))
    }
    assert min(size(roc_png(curves, title="tumour", n=50))) > 400


def test_roc_band_holds_the_curve_of_a_perfect_score() -> None:
    label = np.arange(20) % 2
    low, high = roc_band(label, label.astype(float), n=50, seed=0)
    assert low.min() == high.min() == 1.0
    with pytest.raises(UndefinedMetricError, match="all 20 are of one"):
        roc_band(np.ones(20, dtype=np.int64), label.astype(float), n=5, seed=0)


@pytest.mark.parametrize(
    ("high_share", "event_share"), [(0.5, 0.6), (0.0, 0.6), (0.5, 0.0), (0.5, 1.0)]
)
def test_km_png(high_share: float, event_share: float) -> None:
    rng = np.random.default_rng(1)
    time = rng.exponential(10, size=30).round()
    event = np.arange(30) < 30 * event_share
    high = rng.permutation(np.arange(30) < 30 * high_share)
    assert min(size(km_png(time, event, high, title="risk", xlabel="months"))) > 400


def test_logrank_p() -> None:
    time = np.arange(1.0, 21.0)
    event = np.ones(20, dtype=bool)
    high = time <= 10
    expected = compare_survival(Surv.from_arrays(event, time), high)[1]
    assert logrank_p(time, event, high) == expected < 0.001
    assert logrank_p(time, event, np.zeros(20, dtype=bool)) is None
    assert logrank_p(time, ~event, high) is None


def test_attention_is_painted_where_the_tiles_are() -> None:
    x, y = np.array([0, 400, 0], np.int32), np.array([0, 0, 200], np.int32)
    attention = np.array([0.2, 0.7, 0.1], np.float32)
    painted = attention_overlay((40, 80), x, y, attention, tile_px_level0=100, size_px=(800, 400))
    expected = np.full((40, 80), np.nan)
    expected[0:10, 0:10] = 0.5
    expected[0:10, 40:50] = 1.0
    expected[20:30, 0:10] = 0.0
    assert np.array_equal(painted, expected, equal_nan=True)


@pytest.mark.parametrize("shape", [(60, 200), (300, 80)])
def test_attention_png(shape: tuple[int, int]) -> None:
    thumbnail = np.full((*shape, 3), 230, np.uint8)
    x = np.array([0, 100], np.int32)
    picture = attention_png(
        thumbnail,
        x,
        x,
        np.array([0.4, 0.6], np.float32),
        tile_px_level0=100,
        width_px=shape[1] * 4,
        height_px=shape[0] * 4,
        title="slide",
    )
    assert min(size(picture)) > 300
