"""Measures of several labels and of numbers: equal to the libraries, and on weights."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr
from sklearn.metrics import (
    average_precision_score,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
)

from downstream.measures.class_measures import UndefinedMetricError
from downstream.measures.intervals import compare, interval
from downstream.measures.number_measures import multilabel_measures, r2, regression_measures
from tests.downstream.measures.test_measures import SEEDS, check_weights


@given(seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_several_labels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, (int(rng.integers(6, 40)), 3))
    label[:2] = [[0, 0, 0], [1, 1, 1]]
    score = rng.integers(0, 8, label.shape) / 8
    area, precision = multilabel_measures()
    expected = roc_auc_score(label, score, average="macro")
    assert area.value(label, score) == pytest.approx(expected, abs=1e-9)
    expected = average_precision_score(label, score, average="macro")
    assert precision.value(label, score) == pytest.approx(expected, abs=1e-9)
    for measure in (area, precision):
        check_weights(measure, (label,), score, seed)


@given(seed=SEEDS, offset=st.sampled_from([0.0, 1e4]))
@settings(max_examples=30, deadline=None)
def test_numbers(seed: int, offset: float) -> None:
    rng = np.random.default_rng(seed)
    true_numbers = rng.normal(size=int(rng.integers(4, 40))) + offset
    predicted = true_numbers + rng.normal(size=len(true_numbers))
    estimates = {
        measure.name: measure.value(true_numbers, predicted) for measure in regression_measures()
    }
    expected = {
        "r2": r2_score(true_numbers, predicted),
        "pearson": pearsonr(true_numbers, predicted).statistic,
        "mae": mean_absolute_error(true_numbers, predicted),
    }
    assert estimates == pytest.approx(expected, abs=1e-9)
    for measure in regression_measures():
        check_weights(measure, (true_numbers,), predicted, seed)


def test_a_better_regression_is_better_in_every_measure() -> None:
    rng = np.random.default_rng(0)
    true_numbers = rng.normal(size=200)
    near, far = true_numbers + 0.3 * rng.normal(size=200), true_numbers + 2 * rng.normal(size=200)
    for measure in regression_measures():
        assert compare(measure, (true_numbers,), near, far, seed=0).difference.low > 0, measure.name
        assert interval(measure, (true_numbers,), near, seed=0).redrawn == 0


def test_values_that_do_not_vary_are_undefined() -> None:
    with pytest.raises(UndefinedMetricError, match="3 patients with values that are all the same"):
        r2(np.ones(3), np.arange(3.0))
