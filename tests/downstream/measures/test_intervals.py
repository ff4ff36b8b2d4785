"""Intervals against scipy, against what they promise, and on cohorts where they must be honest."""

import time
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from downstream.measures import resampling
from downstream.measures.class_measures import (
    Measure,
    UndefinedMetricError,
    classification_measures,
)
from downstream.measures.intervals import Comparison, Interval, compare, holm, interval
from downstream.measures.resampling import Method

Floats = NDArray[np.float64]
MEASURES = {measure.name: measure for measure in classification_measures("binary")}
AUROC, BRIER = MEASURES["auroc"], MEASURES["brier"]
MEAN = Measure(
    name="mean",
    value=lambda truth, x: float(x.mean() + 0 * truth.mean()),
    resampled=lambda w, truth, x: w @ x / w.sum(axis=1) + 0 * truth[0],
)


def binormal(patients: int, shift: float, *, seed: int) -> tuple[NDArray[np.int64], Floats]:
    """Labels, one third of them 1, and scores whose true AUROC is Phi(shift / sqrt 2)."""
    rng = np.random.default_rng(seed)
    label = (np.arange(patients) % 3 == 0).astype(np.int64)
    return label, rng.standard_normal(patients) + shift * label


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_limits_are_scipys_on_the_same_resamples(
    monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    x = np.random.default_rng(0).exponential(size=40)
    estimated = interval(MEAN, (np.zeros(40),), x, seed=1, method=method)
    # scipy is given the very values that were drawn here
    w = np.random.default_rng(1).multinomial(40, np.full(40, 1 / 40), size=2000)

    class Drawn:
        bootstrap_distribution = w @ x / 40

    expected = stats.bootstrap(
        (x,), np.mean, n_resamples=0, method=method, bootstrap_result=Drawn, vectorized=True
    ).confidence_interval
    assert (estimated.low, estimated.high) == pytest.approx((expected.low, expected.high), rel=1e-6)
    assert estimated.estimate == pytest.approx(x.mean())
    assert estimated == interval(MEAN, (np.zeros(40),), x, seed=1, method=method)
    assert estimated != interval(MEAN, (np.zeros(40),), x, seed=2, method=method)


def test_the_slow_way_is_the_fast_way() -> None:
    label, score = binormal(50, 1.0, seed=0)
    slow = Measure(name="slow", value=AUROC.value)
    fast, other = (interval(m, (label,), score, seed=3, resamples=1000) for m in (AUROC, slow))
    assert (fast.low, fast.high) == pytest.approx((other.low, other.high), abs=1e-9)


def test_all_measures_of_a_cohort_take_little_time() -> None:
    label, score = binormal(400, 1.0, seed=0)
    begin = time.process_time()
    for measure in classification_measures("binary"):
        estimated = interval(measure, (label,), 1 / (1 + np.exp(-score)), seed=0)
        assert estimated.low <= estimated.estimate <= estimated.high
    assert time.process_time() - begin < 20  # 1.5 s on an idle core, one minute the slow way


def coverage(measure: Measure, method: Method, runs: int, patients: int, shift: float) -> float:
    truth = float(stats.norm.cdf(shift / np.sqrt(2)))
    hits = 0
    for seed in range(runs):
        label, score = binormal(patients, shift, seed=seed)
        estimated = interval(measure, (label,), score, seed=seed, resamples=1000, method=method)
        hits += estimated.low <= truth <= estimated.high
    return hits / runs


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_hold_the_truth_about_as_often_as_they_say(method: Method) -> None:
    # 0.95 is promised; three standard errors of 150 runs are 0.053
    assert 0.89 <= coverage(AUROC, method, runs=150, patients=90, shift=1.0) <= 0.995


@pytest.mark.slow
@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
def test_coverage_over_many_runs(method: Method, shift: float) -> None:
    covered = coverage(AUROC, method, runs=800, patients=120, shift=shift)
    assert 0.92 <= covered <= 0.975


def test_rows_of_a_patient_are_drawn_together() -> None:
    """Copies of the same slide are no new evidence."""
    label, score = binormal(60, 1.0, seed=0)
    names = [f"p{i}" for i in range(60)]
    one = interval(AUROC, (label,), score, seed=0, patients=names)
    five = [np.repeat(part, 5) for part in (label, score)]
    whose = [name for name in names for _ in range(5)]
    together = interval(AUROC, (five[0],), five[1], seed=0, patients=whose)
    alone = interval(AUROC, (five[0],), five[1], seed=0)
    assert together.high - together.low == pytest.approx(one.high - one.low, rel=0.1)
    assert alone.high - alone.low < 0.6 * (one.high - one.low)


def test_pairing_takes_away_what_both_share() -> None:
    label, score = binormal(100, 1.0, seed=0)
    rng = np.random.default_rng(1)
    other = score + 0.1 * rng.standard_normal(100)
    comparison = compare(AUROC, (label,), score, other, seed=0)
    single = interval(AUROC, (label,), score, seed=0)
    width = comparison.difference.high - comparison.difference.low
    assert width < 0.3 * (single.high - single.low)
    same = compare(AUROC, (label,), score, score, seed=0, margin=0.01)
    assert (same.difference.low, same.difference.high, same.p_value) == (0, 0, 1)
    assert same.not_inferior


def test_better_is_above_zero_whatever_the_direction() -> None:
    label, score = binormal(200, 2.0, seed=0)
    good = stats.norm.cdf(score - 1)
    bad = np.full(200, 0.5) + np.random.default_rng(0).uniform(-0.2, 0.2, 200)
    for measure in (AUROC, BRIER):
        comparison = compare(measure, (label,), good, bad, seed=0)
        back = compare(measure, (label,), bad, good, seed=0)
        assert comparison.difference.low > 0
        assert back.difference.high < 0
        assert comparison.p_value == pytest.approx(back.p_value, rel=0.2, abs=0.002)
        assert comparison.p_value < 0.01


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_p_values_and_the_margin_agree_with_the_interval(method: Method) -> None:
    answers = set()
    for seed in range(12):
        label, score = binormal(80, 1.0, seed=seed)
        other = binormal(80, 1.2, seed=100 + seed)[1]
        comparison = compare(
            AUROC, (label,), score, other, seed=seed, margin=0.05, method=method, resamples=1000
        )
        inside = comparison.difference.low <= 0 <= comparison.difference.high
        assert (comparison.p_value > 0.05) == inside
        assert comparison.p_worse is not None
        assert comparison.not_inferior == (comparison.p_worse < 0.025)
        answers.add((inside, comparison.not_inferior))
    assert len(answers) > 1


def test_a_margin_is_about_being_worse_not_about_being_different() -> None:
    label, score = binormal(400, 1.5, seed=0)
    worse = score + 0.35 * np.random.default_rng(0).standard_normal(400)
    strict = compare(AUROC, (label,), worse, score, seed=0, margin=0.001)
    loose = compare(AUROC, (label,), worse, score, seed=0, margin=0.1)
    assert not strict.not_inferior
    assert loose.not_inferior
    assert strict.difference == loose.difference


@pytest.mark.slow
def test_two_equal_models_are_told_apart_as_often_as_allowed() -> None:
    hits = 0
    for seed in range(400):
        label, score = binormal(100, 1.0, seed=seed)
        noise = np.random.default_rng(10_000 + seed).standard_normal((2, 100)) * 0.5
        one, other = score + noise
        hits += compare(AUROC, (label,), one, other, seed=seed, resamples=1000).p_value < 0.05
    assert 0.02 <= hits / 400 <= 0.085


def test_undefined_resamples_are_redrawn_and_counted() -> None:
    label, score = np.array([0, 0, 0, 1, 1, 0]), np.arange(6.0)
    estimated = interval(AUROC, (label,), score, seed=0, method="percentile")
    # all six draws from the four of class 0, or from the two of class 1
    chance = (4 / 6) ** 6 + (2 / 6) ** 6
    assert estimated.redrawn / (estimated.redrawn + 2000) == pytest.approx(chance, abs=0.02)


def test_a_perfect_model_has_no_width_and_no_noise() -> None:
    label = np.array([0, 1] * 20)
    estimated = interval(AUROC, (label,), label.astype(float), seed=0)
    assert (estimated.estimate, estimated.low, estimated.high) == (1.0, 1.0, 1.0)


def test_bca_refuses_a_class_of_one_patient() -> None:
    label, score = np.array([0] * 9 + [1]), np.arange(10.0)
    with pytest.raises(UndefinedMetricError, match=r"without one of 1 patients.*percentile"):
        interval(AUROC, (label,), score, seed=0)
    assert interval(AUROC, (label,), score, seed=0, method="percentile").redrawn > 0


def test_without_each_patient_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of patients; all rows of a patient are left out together."""
    monkeypatch.setattr(resampling, "_JACKKNIFE", 4)
    label, score = binormal(33, 1.0, seed=0)
    names = np.array([f"p{i // 3}" for i in range(33)])
    draws = resampling.draw_all(AUROC, (label,), (score,), 0, names.tolist(), 1000, 0.95, "bca")
    expected = [
        AUROC.value(label[names != name], score[names != name]) for name in np.unique(names)
    ]
    np.testing.assert_allclose(draws.without[0], expected, rtol=1e-12)


def test_what_is_never_defined_gives_up() -> None:
    def never(truth: Floats, x: Floats) -> float:
        if len(np.unique(x)) < len(x):
            msg = "not all there"
            raise UndefinedMetricError(msg)
        return float(truth.mean())

    slow = Measure(name="never", value=never)
    with pytest.raises(UndefinedMetricError, match="on most resamples of 8 patients"):
        interval(slow, (np.zeros(8),), np.arange(8.0), seed=0, method="percentile", resamples=1000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resamples": 999}, "resamples=999"),
        ({"level": 1.0}, r"level=1\.0"),
        ({"patients": ["a"]}, r"rows \[1, 4\]"),
    ],
)
def test_bad_questions_are_refused(options: dict[str, Any], message: str) -> None:
    ask = partial(interval, AUROC, (np.array([0, 1, 0, 1]),), np.arange(4.0), seed=0)
    with pytest.raises(ValueError, match=message):
        ask(**options)


def test_a_margin_is_above_zero() -> None:
    x = np.arange(4.0)
    with pytest.raises(ValueError, match="margin=0"):
        compare(AUROC, (np.array([0, 1, 0, 1]),), x, x, seed=0, margin=0)


@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_holm_by_hand(p: list[float]) -> None:
    """A hypothesis is rejected at a level if all with smaller p are, and its own p passes."""
    names = [str(i) for i in range(len(p))]
    corrected = holm(dict(zip(names, p, strict=True)))
    order = sorted(range(len(p)), key=lambda i: p[i])
    for rank, at in enumerate(order):
        steps = [(len(p) - r) * p[order[r]] for r in range(rank + 1)]
        assert corrected[names[at]] == pytest.approx(min(1, max(steps)))
    assert list(corrected) == names


def test_results_are_plain_values() -> None:
    label, score = binormal(30, 1.0, seed=0)
    comparison = compare(AUROC, (label,), score, -score, seed=0)
    assert isinstance(comparison, Comparison)
    assert isinstance(comparison.difference, Interval)
    assert type(comparison.difference.low) is float
    assert type(comparison.p_value) is float
