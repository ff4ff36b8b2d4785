"""Figures are SVGs whose text is text; what they show is in its place, by others' numbers."""

import base64
import io
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image
from sklearn.calibration import calibration_curve
from sklearn.metrics import precision_recall_curve, roc_curve
from sksurv.nonparametric import kaplan_meier_estimator

from downstream.measures.abstention import risk_coverage
from downstream.measures.class_measures import UndefinedMetricError
from downstream.report.plots.plots_attention import attention_overlay, attention_png, shares
from downstream.report.plots.plots_bands import (
    GRID,
    CurveScores,
    precision_recall_band,
    precision_recall_points,
    reliability,
    roc_band,
    roc_points,
)
from downstream.report.plots.plots_classes import (
    confusion_svg,
    precision_recall_svg,
    reliability_svg,
    risk_coverage_svg,
    roc_svg,
)
from downstream.report.plots.plots_outcomes import (
    km_svg,
    scatter_svg,
    survival_calibration_svg,
    survival_groups,
)

SVG = "{http://www.w3.org/2000/svg}"


def size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return image.size


def svg_size(svg: bytes) -> tuple[float, float]:
    """Width and height of an SVG in points; it loads nothing and runs nothing."""
    root = ET.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert not list(root.iter(f"{SVG}script"))
    for part in root.iter():
        for name, value in part.attrib.items():
            assert not name.startswith("on")
            assert not name.endswith("href") or value.startswith(("#", "data:image/png;base64,"))
    width, height = (float(root.attrib[name].removesuffix("pt")) for name in ("width", "height"))
    return width, height


def words(svg: bytes) -> list[str]:
    """Text of an SVG."""
    texts = ET.fromstring(svg).iter(f"{SVG}text")
    return [" ".join("".join(text.itertext()).split()) for text in texts]


def scores(rows: int, spread: float, *, seed: int = 0, digits: int = 1) -> CurveScores:
    """Return scores of two classes, with many ties."""
    rng = np.random.default_rng(seed)
    label = (np.arange(rows) % 2).astype(np.int64)
    probability = 1 / (1 + np.exp(-(label - 0.5 + rng.normal(0, spread, rows))))
    return CurveScores(label=label, score=probability.round(digits))


def test_points_are_those_of_scikit_learn() -> None:
    one = scores(60, 1.0)
    false, true, _ = roc_curve(one.label, one.score, drop_intermediate=False)
    points = roc_points(one)
    assert np.allclose(points[0], false)
    assert np.allclose(points[1], true)
    precision, recall, _ = precision_recall_curve(one.label, one.score)
    points = precision_recall_points(one)
    # scikit-learn goes from the lowest threshold up, and ends with a made-up point
    assert np.allclose(points[0], recall[-2::-1])
    assert np.allclose(points[1], precision[-2::-1])


def test_bands_are_percentiles_over_resampled_patients() -> None:
    one = scores(40, 1.0, digits=3)
    rng, curves = np.random.default_rng(7), []
    for _ in range(1000):
        rows = rng.integers(0, 40, size=40)
        false, true, _ = roc_curve(one.label[rows], one.score[rows], drop_intermediate=False)
        curves.append(np.interp(GRID, false, true))
    expected = np.percentile(curves, [2.5, 97.5], axis=0)
    low, high = roc_band(one, n=1000, seed=1)
    assert np.abs(low - expected[0]).mean() < 0.015
    assert np.abs(high - expected[1]).mean() < 0.015


def test_a_band_of_precision_is_about_its_curve() -> None:
    one = scores(40, 1.0, digits=3)
    low, high = precision_recall_band(one, n=300, seed=1)
    recall, precision = precision_recall_points(one)
    for at in (0.25, 0.5, 0.75, 1.0):
        precision_at = precision[np.searchsorted(recall, at - 1e-9)]
        assert low[round(100 * at)] <= precision_at <= high[round(100 * at)]


def test_repeats_of_the_same_patients_do_not_narrow_a_band() -> None:
    one = scores(30, 1.0, digits=3)
    patients = [f"p{number}" for number in range(30)]
    twice = CurveScores(
        label=np.tile(one.label, 4), score=np.tile(one.score, 4), patients=patients * 4
    )
    alone = CurveScores(label=twice.label, score=twice.score)
    widths = []
    for part in (one, twice, alone):
        low, high = roc_band(part, n=400, seed=0)
        widths.append((high - low).mean())
    assert widths[1] == pytest.approx(widths[0], rel=0.1)
    assert widths[2] < 0.65 * widths[0]


def test_bands_of_a_perfect_score() -> None:
    label = (np.arange(20) % 2).astype(np.int64)
    perfect = CurveScores(label=label, score=label.astype(float))
    for band in (roc_band, precision_recall_band):
        low, high = band(perfect, n=50, seed=0)
        assert low.min() == high.min() == 1.0
    one_class = CurveScores(label=np.ones(20, dtype=np.int64), score=perfect.score)
    with pytest.raises(UndefinedMetricError, match="all 20 are of one"):
        roc_band(one_class, n=5, seed=0)
    with pytest.raises(UndefinedMetricError, match="precision-recall curve needs patients of both"):
        precision_recall_points(one_class)


def test_reliability_is_that_of_scikit_learn() -> None:
    one = scores(400, 2.0, digits=6)
    bins = reliability(one, bins=10, n=50)
    observed, predicted = calibration_curve(one.label, one.score, n_bins=10, strategy="quantile")
    assert np.allclose(bins.observed, observed)
    assert np.allclose(bins.predicted, predicted)
    assert bins.rows.sum() == 400
    assert (bins.low <= bins.observed).all()
    assert (bins.observed <= bins.high).all()
    same = reliability(CurveScores(label=one.label, score=np.full(400, 0.5)), n=5)
    assert same.rows.tolist() == [400]
    with pytest.raises(UndefinedMetricError, match="there are none"):
        reliability(CurveScores(label=np.empty(0, np.int64), score=np.empty(0)))


def test_figures_of_classes() -> None:
    curves = {"a": scores(24, 1.0), "b, a name that is much too long for a legend $": scores(24, 3)}
    estimates = {"a": (0.8, 0.7, 0.9)}
    roc = roc_svg(curves, estimates=estimates, title="US$ or A$", n=20)
    assert min(svg_size(roc)) > 300
    assert {"US$ or A$", "sensitivity", "a: 0.800 (0.700 to 0.900)"} <= set(words(roc))
    assert roc == roc_svg(curves, estimates=estimates, title="US$ or A$", n=20)
    assert min(svg_size(precision_recall_svg(curves, estimates=estimates, n=20))) > 300
    assert min(svg_size(reliability_svg(curves, xlabel="said", ylabel="found"))) > 300
    risk = {name: risk_coverage(one.score, one.label == 1) for name, one in curves.items()}
    assert min(svg_size(risk_coverage_svg(risk))) > 250
    confusion = confusion_svg(np.array([[3, 0], [0, 0]]), ["no", "yes"], title="<b>&")
    assert min(svg_size(confusion)) > 150
    assert "<b>&" in words(confusion)


def test_small_multiples_show_one_arm_and_the_others_behind_it() -> None:
    curves = {f"arm{number}": scores(24, 1.0 + number) for number in range(4)}
    others = {name: one for name, one in curves.items() if name != "arm0"}
    one = {"arm0": curves["arm0"]}
    estimates = {"arm0": (0.8, 0.7, 0.9)}
    small = roc_svg(one, estimates=estimates, context=others, title="arm0", n=5)
    assert max(svg_size(small)) < 250
    assert small.count(b"stroke: #cccccc") == 3
    assert {"arm0", "0.800 (0.700 to 0.900)"} <= set(words(small))
    for figure in (
        precision_recall_svg(one, context=others, title="arm0", n=5),
        reliability_svg(one, xlabel="said", ylabel="found", context=others, title="arm0"),
        risk_coverage_svg(
            {name: risk_coverage(part.score, part.label == 1) for name, part in one.items()},
            context={n: risk_coverage(p.score, p.label == 1) for n, p in others.items()},
            title="arm0",
        ),
    ):
        assert max(svg_size(figure)) < 300
        assert figure.count(b"stroke: #cccccc") == 3
        assert "arm0" in words(figure)


def test_a_figure_of_many_points_stays_small() -> None:
    rng = np.random.default_rng(0)
    many = rng.normal(size=200_000)
    label = (rng.random(len(many)) < 0.5).astype(np.int64)
    curves = {"a": CurveScores(label=label, score=many + label)}
    for figure in (roc_svg(curves, n=2), precision_recall_svg(curves, n=2)):
        assert len(figure) < 200_000
    assert len(scatter_svg(many, many + rng.normal(size=len(many)))) < 400_000
    time, event = rng.exponential(9, len(many)), rng.random(len(many)) < 0.5
    assert len(km_svg(time, event, label == 1)) < 700_000


def test_a_confusion_matrix_has_true_classes_in_rows() -> None:
    """Dark is a share of the row: the upper right is filled where all 0 are called 1."""
    root = ET.fromstring(confusion_svg(np.array([[0, 9], [5, 5]]), ["0", "1"]))
    (link,) = (image.attrib["{http://www.w3.org/1999/xlink}href"] for image in
               root.iter(f"{SVG}image"))  # fmt: skip
    with Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))) as image:
        pixels = np.asarray(image.convert("L")).astype(int)[::-1]  # it is turned by the SVG
    dark = np.argwhere(pixels < 80)
    height, width = pixels.shape
    upper_right = (dark[:, 0] < height * 0.45) & (dark[:, 1] > width * 0.5)
    assert upper_right.mean() > 0.8


@pytest.mark.parametrize(
    ("high_share", "event_share"), [(0.5, 0.6), (0.0, 0.6), (0.5, 0.0), (0.5, 1.0)]
)
def test_km_svg(high_share: float, event_share: float) -> None:
    rng = np.random.default_rng(1)
    time = rng.exponential(10, size=30).round()
    event = np.arange(30) < 30 * event_share
    high = rng.permutation(np.arange(30) < 30 * high_share)
    assert min(svg_size(km_svg(time, event, high, title="risk", xlabel="months"))) > 300


def test_predicted_survival_is_held_against_kaplan_meier() -> None:
    rng = np.random.default_rng(2)
    time, event, predicted = rng.exponential(8, 60), rng.random(60) < 0.7, rng.random(60)
    groups = survival_groups(time, event, predicted, at=5.0)
    assert groups.patients.tolist() == [15] * 4
    lowest = np.argsort(predicted)[:15]
    at, survival, limits = kaplan_meier_estimator(event[lowest], time[lowest], conf_type="log-log")
    last = np.flatnonzero(at <= 5.0)[-1]
    assert groups.predicted[0] == pytest.approx(predicted[lowest].mean())
    assert groups.observed[0] == survival[last]
    assert (groups.low[0], groups.high[0]) == (limits[0][last], limits[1][last])
    assert min(svg_size(survival_calibration_svg(groups, title="a", at="months = 5"))) > 200
    # nobody is followed that long, no event before, too few patients
    assert np.isnan(survival_groups(time, event, predicted, at=1e3).observed).all()
    assert survival_groups(time, event, predicted, at=1e-6).observed.tolist() == [1.0] * 4
    with pytest.raises(UndefinedMetricError, match="there are 20 patients"):
        survival_groups(time[:20], event[:20], predicted[:20], at=5.0)


def test_scatter_svg() -> None:
    true_numbers = np.arange(5.0)
    assert min(svg_size(scatter_svg(true_numbers, true_numbers[::-1], title="a", name="age"))) > 200
    assert min(svg_size(scatter_svg(np.ones(3), np.ones(3)))) > 200


def test_attention_is_painted_where_the_tiles_are() -> None:
    x, y = np.array([0, 400, 0], np.int32), np.array([0, 0, 200], np.int32)
    attention = np.array([0.2, 0.7, 0.1], np.float32)
    painted = attention_overlay((40, 80), x, y, attention, tile_px_level0=100, size_px=(800, 400))
    expected = np.full((40, 80), np.nan)
    expected[0:10, 0:10] = 0.5
    expected[0:10, 40:50] = 1.0
    expected[20:30, 0:10] = 0.0
    assert np.array_equal(painted, expected, equal_nan=True)
    assert shares(np.array([0.3, 0.3, 0.1], np.float32)).tolist() == [0.75, 0.75, 0.0]
    assert shares(np.array([1.0], np.float32)).tolist() == [0.0]


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
