"""Thresholds and risk by coverage against brute force and their promise."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import softmax

from downstream.measures.abstention import (
    AbstentionError,
    ClassPredictions,
    choose_threshold,
    is_answered,
    risk_coverage,
)
from downstream.splits.folds import Part
from downstream.splits.split import LeakageError

Floats = NDArray[np.float64]


def predictions(
    patients: int, *, seed: int, part: Part = "validation", first: int = 0
) -> ClassPredictions:
    """Labels drawn from the probabilities themselves: calibrated."""
    rng = np.random.default_rng(seed)
    probabilities = softmax(rng.normal(size=(patients, 3)) * 2, axis=1)
    labels = np.array([rng.choice(3, p=p) for p in probabilities])
    names = tuple(f"p{first + i}" for i in range(patients))
    return ClassPredictions(patients=names, probabilities=probabilities, labels=labels, part=part)


@given(seed=st.integers(0, 10**6), target=st.sampled_from([0.5, 0.7, 0.9, 0.97, 1.0]))
@settings(max_examples=60, deadline=None)
def test_the_threshold_keeps_most_at_the_target(seed: int, target: float) -> None:
    rows = predictions(30, seed=seed)
    rounded = replace(rows, probabilities=np.round(rows.probabilities, 1))  # ties
    threshold = choose_threshold(rounded, target=target)
    sure, right = rounded.confidence, rounded.is_correct
    kept = is_answered(rounded, threshold)
    assert threshold.coverage == kept.mean()
    if kept.any():
        assert right[kept].mean() == threshold.accuracy >= target
    shares = [
        (sure >= cut).mean() for cut in np.unique(sure) if right[sure >= cut].mean() >= target
    ]
    assert threshold.coverage == max(shares, default=0.0)


def test_a_target_out_of_reach_is_answered_with_silence() -> None:
    rows = predictions(20, seed=0)
    wrong = replace(rows, labels=(rows.probabilities.argmax(axis=1) + 1) % 3)
    threshold = choose_threshold(wrong, target=0.9)
    assert threshold.value == np.inf
    assert np.isnan(threshold.accuracy)
    assert not is_answered(wrong, threshold).any()


def test_the_target_holds_on_new_patients_about() -> None:
    chosen = choose_threshold(predictions(3000, seed=0), target=0.9)
    test = predictions(3000, seed=1, part="test", first=10_000)
    kept = is_answered(test, chosen)
    assert test.is_correct[kept].mean() == pytest.approx(0.9, abs=0.02)
    assert kept.mean() == pytest.approx(chosen.coverage, abs=0.03)
    assert test.is_correct.mean() < 0.8


@pytest.mark.parametrize("part", ["test", "train"])
def test_nothing_is_chosen_on_test_predictions(part: Part) -> None:
    rows = predictions(20, seed=0, part=part)
    with pytest.raises(LeakageError, match=f"a threshold from {part} predictions"):
        choose_threshold(rows, target=0.9)


def test_a_threshold_knows_whom_it_was_chosen_on() -> None:
    chosen = choose_threshold(predictions(20, seed=0), target=0.5)
    test = predictions(5, seed=2, part="test", first=19)
    with pytest.raises(LeakageError, match=r"1 test patients helped .* p19"):
        is_answered(test, chosen)


def by_hand(confidence: Floats, right: NDArray[np.bool_]) -> Floats:
    """Mean over all orders of tied patients."""
    curves = [
        np.cumsum(~right[list(order)]) / np.arange(1, len(right) + 1)
        for order in permutations(range(len(right)))
        if (np.diff(confidence[list(order)]) <= 0).all()
    ]
    mean: Floats = np.mean(curves, axis=0)
    return mean


@given(rows=st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_risk_by_coverage_is_the_mean_over_orders(rows: list[tuple[int, bool]]) -> None:
    confidence, right = np.array([a for a, _ in rows], float), np.array([b for _, b in rows])
    curve = risk_coverage(confidence, right)
    np.testing.assert_allclose(curve.risk, by_hand(confidence, right), atol=1e-12)
    assert curve.aurc == pytest.approx(curve.risk.mean())
    best = risk_coverage(right.astype(float), right)
    assert curve.optimal_aurc == pytest.approx(best.aurc)
    assert curve.aurc >= curve.optimal_aurc - 1e-12


def test_a_confidence_that_knows_nothing_has_the_same_risk_everywhere() -> None:
    right = np.arange(10) % 5 != 0
    curve = risk_coverage(np.full(10, 0.7), right)
    np.testing.assert_allclose(curve.risk, 0.2)
    assert curve.coverage[-1] == 1


def test_bad_predictions_are_refused() -> None:
    rows = predictions(4, seed=0)
    for change in ({"labels": np.zeros(3, int)}, {"probabilities": np.zeros((4, 1))}):
        with pytest.raises(AbstentionError, match="give a row a patient"):
            replace(rows, **change)
    with pytest.raises(AbstentionError, match="target=0"):
        choose_threshold(rows, target=0)
    with pytest.raises(AbstentionError, match="0 confidences"):
        risk_coverage(np.empty(0), np.empty(0, bool))
