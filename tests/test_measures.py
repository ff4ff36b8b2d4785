"""Measures equal scikit-learn and scikit-survival, and weights equal repeated patients."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sklearn_metrics
from sksurv import metrics as sksurv_metrics
from sksurv.util import Surv

from downstream import measures, measures_survival, measures_weighted
from downstream.measures import Measure, UndefinedMetricError, classification_measures
from downstream.measures_survival import survival_measures

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


def followed(seed: int) -> tuple[NDArray[np.bool_], Floats, Floats]:
    """Events, times and risks with ties; the largest time is seen in the training patients only."""
    rng = np.random.default_rng(seed)
    patients = int(rng.integers(8, 60))
    event = rng.random(patients) < 0.6
    event[:2] = True
    time = rng.integers(1, 12, patients).astype(float)
    time[0], time[-1] = 1.0, 13.0
    return event, time, rng.integers(0, 6, patients) / 2


def trained(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed + 1)
    event, time = rng.random(80) < 0.5, rng.integers(1, 20, 80).astype(float)
    time[0], event[0] = 30.0, False
    time[1], event[1] = 31.0, True
    return {"train_event": event, "train_time": time}


@given(seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_binary_measures_are_scikit_learns(seed: int) -> None:
    label, score = labelled(seed, classes=2)
    found = {m.name: m.value(label, score) for m in classification_measures("binary")}
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
    assert found == pytest.approx(expected, abs=1e-9)


@given(seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_measures_of_four_classes_are_scikit_learns(seed: int) -> None:
    label, score = labelled(seed, classes=4)
    found = {m.name: m.value(label, score) for m in classification_measures("multiclass")}
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
    assert found == pytest.approx(expected, abs=1e-9)


def ece_by_hand(label: NDArray[np.int64], probability: Floats) -> float:
    sure, right = probability.max(axis=1), probability.argmax(axis=1) == label
    total = 0.0
    for k in range(15):
        here = (sure > k / 15) & (sure <= (k + 1) / 15)
        if here.any():
            total += here.mean() * abs(right[here].mean() - sure[here].mean())
    return total


@given(seed=SEEDS, tau=st.sampled_from([None, 6.0, 11.0]))
@settings(max_examples=40, deadline=None)
def test_concordances_are_scikit_survivals(seed: int, tau: float | None) -> None:
    event, time, risk = followed(seed)
    train = trained(seed)
    found = {m.name: m.value(event, time, risk) for m in survival_measures(**train, tau=tau)}
    y_train, y = Surv.from_arrays(*train.values()), Surv.from_arrays(event, time)
    expected = {
        "harrell_c": sksurv_metrics.concordance_index_censored(event, time, risk)[0],
        "uno_c": sksurv_metrics.concordance_index_ipcw(y_train, y, risk, tau=tau)[0],
    }
    assert found == pytest.approx(expected, abs=1e-9)


@given(seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_measures_over_time_are_scikit_survivals(seed: int) -> None:
    event, time, risk = followed(seed)
    train, times = trained(seed), np.array([2.0, 4.5, 7.0])
    y_train, y = Surv.from_arrays(*train.values()), Surv.from_arrays(event, time)
    area = measures_survival.dynamic_auc(event, time, risk, **train, times_T=times)
    expected = sksurv_metrics.cumulative_dynamic_auc(y_train, y, risk, times)[1]
    assert area == pytest.approx(expected, abs=1e-9)
    curves = np.exp(-np.outer(np.exp(risk), times) / 30)
    error = measures_survival.integrated_brier(event, time, curves, **train, times_T=times)
    expected = sksurv_metrics.integrated_brier_score(y_train, y, curves, times)
    assert error == pytest.approx(expected, abs=1e-9)


def check_weights(measure: Measure, truth: tuple[Any, ...], prediction: Floats, seed: int) -> None:
    """The fast form of five resamples is the library's value on repeated rows, or NaN."""
    assert measure.resampled is not None
    rng = np.random.default_rng(seed)
    rows = len(prediction)
    w = rng.multinomial(rows, np.full(rows, 1 / rows), size=5).astype(float)
    w[0] = 1
    found = measure.resampled(w, *truth, prediction)
    for weight, value in zip(w, found, strict=True):
        drawn = np.repeat(np.arange(rows), weight.astype(int))
        try:
            with warnings.catch_warnings(action="ignore"):
                expected = measure.value(*(part[drawn] for part in truth), prediction[drawn])
        except UndefinedMetricError:
            expected = np.nan
        assert value == pytest.approx(expected, abs=1e-9, nan_ok=True), measure.name


@given(seed=SEEDS, classes=st.sampled_from([2, 3, 4]))
@settings(max_examples=40, deadline=None)
def test_weights_are_repeated_patients_in_classification(seed: int, classes: int) -> None:
    label, score = labelled(seed, classes=classes)
    for measure in classification_measures("binary" if classes == 2 else "multiclass"):
        check_weights(measure, (label,), score, seed)


@given(seed=SEEDS, tau=st.sampled_from([None, 6.0]))
@settings(max_examples=40, deadline=None)
def test_weights_are_repeated_patients_in_survival(seed: int, tau: float | None) -> None:
    event, time, risk = followed(seed)
    for measure in survival_measures(**trained(seed), tau=tau):
        check_weights(measure, (event, time), risk, seed)


@pytest.mark.parametrize("block", [1, 7])
def test_concordance_by_blocks_is_concordance(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(measures_weighted, "_BLOCK", block)
    event, time, risk = followed(5)
    for measure in survival_measures(**trained(5)):
        check_weights(measure, (event, time), risk, 5)


def test_a_threshold_changes_what_is_predicted_and_nothing_else() -> None:
    label, score = np.array([0, 0, 1, 1]), np.array([0.1, 0.3, 0.35, 0.9])
    at = {m.name: m.value(label, score) for m in classification_measures("binary", threshold=0.32)}
    half = {m.name: m.value(label, score) for m in classification_measures("binary")}
    assert at["balanced_accuracy"] == 1.0
    assert half["balanced_accuracy"] == 0.75
    assert at["auroc"] == half["auroc"]
    assert at["brier"] == half["brier"]


def test_direction_higher_risk_is_worse_and_lower_survival_is() -> None:
    time, event = np.arange(1.0, 31.0), np.ones(30, dtype=bool)
    train: dict[str, Any] = {"train_event": event, "train_time": time + 3}
    times = np.array([5.0, 10.0, 20.0])
    for measure in survival_measures(**train, tau=30.0, times_T=times):
        assert measure.value(event, time, -time) == 1.0
        assert measure.value(event, time, time) == 0.0
    right = (time[:, None] > times).astype(float)
    assert measures_survival.integrated_brier(event, time, right, **train, times_T=times) < 1e-12
    wrong = measures_survival.integrated_brier(event, time, 1 - right, **train, times_T=times)
    assert wrong == pytest.approx(1)
    assert [m.higher_is_better for m in classification_measures("binary")][-2:] == [False, False]


UNDEFINED: dict[str, Callable[[], float]] = {
    "AUROC needs all 2 classes": lambda: measures.auroc(np.ones(3, int), np.ones(3)),
    "AUPRC needs all 3 classes": lambda: measures.auprc(np.array([0, 1]), np.ones((2, 3))),
    "balanced accuracy needs": lambda: measures.balanced_accuracy(np.zeros(3, int), np.ones(3)),
    "kappa: all 2 labels": lambda: measures.kappa(np.array([1, 1]), np.array([0.9, 0.8])),
    "Harrell's C is undefined on these patients: All": lambda: measures_survival.harrell_c(
        np.zeros(3, bool), np.ones(3), np.ones(3)
    ),
    "Harrell's C is undefined": lambda: measures_survival.harrell_c(
        np.array([False, True]), np.array([1.0, 2.0]), np.ones(2)
    ),
    "Uno's C is undefined": lambda: measures_survival.uno_c(*followed(0), **trained(0), tau=0.5),
    "Harrell's C is undefined on these patients: nobody": lambda: measures_survival.harrell_c(
        np.ones(3, bool), np.ones(3), np.arange(3.0)
    ),
    "Uno's C is undefined on these patients: nobody": lambda: measures_survival.uno_c(
        np.ones(3, bool), np.ones(3), np.arange(3.0), **trained(0)
    ),
    r"AUC\(t\) is undefined": lambda: measures_survival.dynamic_auc(
        *followed(0), **trained(0), times_T=np.array([99.0])
    ),
}


@pytest.mark.parametrize("message", UNDEFINED)
def test_what_is_undefined_says_so(message: str) -> None:
    with pytest.raises(UndefinedMetricError, match=message):
        UNDEFINED[message]()
