"""Measures equal scikit-learn, and weights equal repeated patients."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sklearn_metrics

from downstream.measures import class_measures as measures
from downstream.measures.class_measures import (
    Measure,
    UndefinedMetricError,
    classification_measures,
    measure_of,
)
from downstream.measures.weighted import auroc_folds

Floats = NDArray[np.float64]
SEEDS = st.integers(0, 10**6)


def labelled(seed: int, *, classes: int) -> tuple[NDArray[np.int64], Floats]:
    """Labels of every class and scores on a coarse grid, so that there are many ties."""
    rng = np.random.default_rng(seed)
    patients = int(rng.integers(classes + 2, 60))
    label = np.concatenate([np.arange(classes), rng.integers(0, classes, patients - classes)])
    if classes == 2:
        return label, rng.integers(0, 11, patients) / 10
    raw = rng.integers(1, 6, (patients, classes)).astype(float)
    return label, raw / raw.sum(axis=1, keepdims=True)


@given(seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_binary_measures_are_scikit_learns(seed: int) -> None:
    label, score = labelled(seed, classes=2)
    value_of = {m.name: m.value(label, score) for m in classification_measures("binary")}
    predicted = (score >= 0.5).astype(int)
    sk = sklearn_metrics
    expected = {
        "auroc": sk.roc_auc_score(label, score),
        "auprc": sk.average_precision_score(label, score),
        "balanced_accuracy": sk.balanced_accuracy_score(label, predicted),
        "f1": sk.f1_score(label, predicted, zero_division=0),
        "kappa": sk.cohen_kappa_score(label, predicted),
        "kappa_quadratic": sk.cohen_kappa_score(label, predicted, weights="quadratic"),
        "brier": sk.brier_score_loss(label, score),
        "ece": ece_by_hand(label, np.stack([1 - score, score], axis=1)),
    }
    assert value_of == pytest.approx(expected, abs=1e-9)


@given(seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_measures_of_four_classes_are_scikit_learns(seed: int) -> None:
    label, score = labelled(seed, classes=4)
    value_of = {m.name: m.value(label, score) for m in classification_measures("multiclass")}
    predicted, hot = score.argmax(axis=1), np.eye(4)[label]
    sk = sklearn_metrics
    expected = {
        "auroc": sk.roc_auc_score(label, score, multi_class="ovr", average="macro"),
        "auprc": sk.average_precision_score(hot, score, average="macro"),
        "balanced_accuracy": sk.balanced_accuracy_score(label, predicted),
        "f1": sk.f1_score(label, predicted, average="macro", zero_division=0),
        "kappa": sk.cohen_kappa_score(label, predicted),
        "kappa_quadratic": sk.cohen_kappa_score(label, predicted, weights="quadratic"),
        "brier": ((score - hot) ** 2).sum(axis=1).mean(),
        "ece": ece_by_hand(label, score),
    }
    assert value_of == pytest.approx(expected, abs=1e-9)


def ece_by_hand(label: NDArray[np.int64], probability: Floats) -> float:
    sure, right = probability.max(axis=1), probability.argmax(axis=1) == label
    total = 0.0
    for k in range(15):
        in_bin = (sure > k / 15) & (sure <= (k + 1) / 15)
        if in_bin.any():
            total += in_bin.mean() * abs(right[in_bin].mean() - sure[in_bin].mean())
    return total


def check_weights(measure: Measure, truth: tuple[Any, ...], prediction: Floats, seed: int) -> None:
    """The fast form of five resamples is the library's value on repeated rows, or NaN."""
    assert measure.resampled is not None
    rng = np.random.default_rng(seed)
    rows = len(prediction)
    w = rng.multinomial(rows, np.full(rows, 1 / rows), size=5).astype(float)
    w[0] = 1
    resampled = measure.resampled(w, *truth, prediction)
    for weight, estimate in zip(w, resampled, strict=True):
        drawn = np.repeat(np.arange(rows), weight.astype(int))
        try:
            with warnings.catch_warnings(action="ignore"):
                expected = measure.value(*(part[drawn] for part in truth), prediction[drawn])
        except UndefinedMetricError:
            expected = np.nan
        assert estimate == pytest.approx(expected, abs=1e-9, nan_ok=True), measure.name


@pytest.mark.slow
@given(seed=SEEDS, classes=st.sampled_from([2, 3, 4]))
@settings(max_examples=40, deadline=None)
def test_weights_are_repeated_patients_in_classification(seed: int, classes: int) -> None:
    label, score = labelled(seed, classes=classes)
    for measure in classification_measures("binary" if classes == 2 else "multiclass"):
        check_weights(measure, (label,), score, seed)


@given(seed=SEEDS, classes=st.sampled_from([2, 3]))
@settings(max_examples=40, deadline=None)
def test_auroc_within_folds_is_scikit_learns_by_pairs(seed: int, classes: int) -> None:
    label, score = labelled(seed, classes=classes)
    fold = np.random.default_rng(seed).integers(0, 3, len(label))
    columns = [(1, score)] if classes == 2 else list(enumerate(score.T))
    areas = []
    for c, class_score in columns:
        right = pairs = 0.0
        for number in range(3):
            in_fold, is_c = fold == number, label == c
            weight = (in_fold & is_c).sum() * (in_fold & ~is_c).sum()
            if weight:
                right += weight * sklearn_metrics.roc_auc_score(is_c[in_fold], class_score[in_fold])
                pairs += weight
        areas.append(right / pairs if pairs else np.nan)
    measure = measure_of("auroc_folds", auroc_folds)
    if np.isnan(areas).any():
        with pytest.raises(UndefinedMetricError, match="auroc_folds is undefined"):
            measure.value(label, fold, score)
        return
    assert measure.value(label, fold, score) == pytest.approx(np.mean(areas), abs=1e-9)
    check_weights(measure, (label, fold), score, seed)


def test_auroc_within_folds_does_not_see_the_folds_scales() -> None:
    label, fold, score = np.tile([0, 1], 6), np.repeat([0, 1, 2], 4), np.tile([0.1, 0.2], 6)
    moved = score + 10.0 * fold
    measure = measure_of("auroc_folds", auroc_folds)
    assert measure.value(label, fold, moved) == 1
    assert measures.auroc(label, moved) < 0.8


def test_a_threshold_changes_what_is_predicted_and_nothing_else() -> None:
    label, score = np.array([0, 0, 1, 1]), np.array([0.1, 0.3, 0.35, 0.9])
    at = {m.name: m.value(label, score) for m in classification_measures("binary", threshold=0.32)}
    half = {m.name: m.value(label, score) for m in classification_measures("binary")}
    assert at["balanced_accuracy"] == 1.0
    assert half["balanced_accuracy"] == 0.75
    assert at["auroc"] == half["auroc"]
    assert at["brier"] == half["brier"]
    assert [m.higher_is_better for m in classification_measures("binary")][-2:] == [False, False]


UNDEFINED: dict[str, Callable[[], float]] = {
    "AUROC needs all 2 classes": lambda: measures.auroc(np.ones(3, int), np.ones(3)),
    "AUPRC needs all 3 classes": lambda: measures.auprc(np.array([0, 1]), np.ones((2, 3))),
    "balanced accuracy needs": lambda: measures.balanced_accuracy(np.zeros(3, int), np.ones(3)),
    "kappa: all 2 labels": lambda: measures.kappa(np.array([1, 1]), np.array([0.9, 0.8])),
}


@pytest.mark.parametrize("message", UNDEFINED)
def test_what_is_undefined_says_so(message: str) -> None:
    with pytest.raises(UndefinedMetricError, match=message):
        UNDEFINED[message]()
