"""Measures of many resamples at once: a weight is how often a patient was drawn.

Sorting, binning and comparing patients is done once for all resamples; what is left are sums over
weights. Values are NaN where `measures` raises UndefinedMetricError.

Shape letters: R resamples, P patients, C classes, U different scores, K bins.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Flags = NDArray[np.bool_]


_ECE_BINS = 15


def auroc(w_RP: Floats, label_P: Labels, score: Floats) -> Floats:
    """Return the areas under the ROC curve [R], see `class_measures.auroc`."""
    return _one_against_rest_mean(w_RP, label_P, score, _roc_area)


def auroc_folds(w_RP: Floats, label_P: Labels, group_P: Labels, score: Floats) -> Floats:
    """Return the ROC areas [R] over pairs within folds, since each fold's model has its own scale.

    Right pairs are added over folds and divided by all pairs: a fold without one of the classes
    adds nothing. Over several classes the unweighted mean of one against the rest.

    Args:
        w_RP: how often each row was drawn.
        label_P: class indices.
        group_P: rows with the same number are compared.
        score: probabilities, [P] of class 1, or [P, C].
    """
    return _one_against_rest_mean(w_RP, label_P, score, partial(_roc_area_within_folds, group_P))


def auprc(w_RP: Floats, label_P: Labels, score: Floats) -> Floats:
    """Return average precisions [R], see `class_measures.auprc`."""
    return _one_against_rest_mean(w_RP, label_P, score, _average_precision)


def balanced_accuracy(
    w_RP: Floats, label_P: Labels, score: Floats, *, threshold: float = 0.5
) -> Floats:
    """Return the mean recalls [R], see `class_measures.balanced_accuracy`."""
    table_RCC = confusion(w_RP, label_P, score, threshold)
    recall_RC = divide(np.diagonal(table_RCC, axis1=1, axis2=2), table_RCC.sum(axis=2))
    mean_R: Floats = recall_RC.mean(axis=1)
    return mean_R


def f1(w_RP: Floats, label_P: Labels, score: Floats, *, threshold: float = 0.5) -> Floats:
    """Return F1 [R], see `class_measures.f1`."""
    table_RCC = confusion(w_RP, label_P, score, threshold)
    hit_RC = np.diagonal(table_RCC, axis1=1, axis2=2)
    value_RC = np.nan_to_num(divide(2 * hit_RC, table_RCC.sum(axis=1) + table_RCC.sum(axis=2)))
    value_R: Floats = value_RC[:, 1] if score.ndim == 1 else value_RC.mean(axis=1)
    return value_R


def kappa(
    w_RP: Floats,
    label_P: Labels,
    score: Floats,
    *,
    threshold: float = 0.5,
    quadratic: bool = False,
) -> Floats:
    """Return Cohen's kappas [R], see `class_measures.kappa`."""
    table_RCC = confusion(w_RP, label_P, score, threshold)
    classes = np.arange(table_RCC.shape[1])
    apart = np.abs(classes[:, None] - classes)
    cost_CC = apart**2 if quadratic else apart > 0
    chance_RCC = table_RCC.sum(axis=2)[:, :, None] * table_RCC.sum(axis=1)[:, None]
    by_chance_R = (chance_RCC * cost_CC).sum(axis=(1, 2)) / table_RCC.sum(axis=(1, 2))
    return 1 - divide((table_RCC * cost_CC).sum(axis=(1, 2)), by_chance_R)


def class_distance(w_RP: Floats, label_P: Labels, score: Floats) -> Floats:
    """Return mean steps between predicted and true class [R], see `class_measures`."""
    steps_P = np.abs(score.argmax(axis=1) - label_P)
    mean_R: Floats = w_RP @ steps_P / w_RP.sum(axis=1)
    return mean_R


def brier(w_RP: Floats, label_P: Labels, score: Floats) -> Floats:
    """Return the mean squared errors [R], see `class_measures.brier`."""
    if score.ndim == 1:
        error_P = (score - label_P) ** 2
    else:
        error_P = ((score - np.eye(score.shape[1])[label_P]) ** 2).sum(axis=1)
    mean_R: Floats = w_RP @ error_P / w_RP.sum(axis=1)
    return mean_R


def ece(w_RP: Floats, label_P: Labels, score: Floats) -> Floats:
    """Return calibration errors [R], see `class_measures.ece`."""
    both_PC = score if score.ndim > 1 else np.stack([1 - score, score], axis=1)
    sure_P = both_PC.max(axis=1)
    # bins (low, high]; a confidence is never 0
    bin_P = np.clip(np.ceil(sure_P * _ECE_BINS).astype(np.int64) - 1, 0, _ECE_BINS - 1)
    gap_P = (both_PC.argmax(axis=1) == label_P) - sure_P
    gap_PK = np.zeros((len(label_P), _ECE_BINS))
    gap_PK[np.arange(len(label_P)), bin_P] = gap_P
    error_R: Floats = np.abs(w_RP @ gap_PK).sum(axis=1) / w_RP.sum(axis=1)
    return error_R


def confusion(w_RP: Floats, label_P: Labels, score: Floats, threshold: float) -> Floats:
    """Return the confusion matrices [R, C, C], label by prediction."""
    classes = score.shape[1] if score.ndim > 1 else 2
    predicted_P = score.argmax(axis=1) if score.ndim > 1 else (score >= threshold).astype(np.int64)
    cell_PK = np.eye(classes**2)[label_P * classes + predicted_P]
    table: Floats = (w_RP @ cell_PK).reshape(-1, classes, classes)
    return table


def _one_against_rest_mean(
    w_RP: Floats,
    label_P: Labels,
    score: Floats,
    binary_measure: Callable[[Floats, Flags, Floats], Floats],
) -> Floats:
    """Return the one-against-rest mean of a measure; NaN if a class has no weight."""
    if score.ndim == 1:
        measured_R: Floats = binary_measure(w_RP, label_P == 1, score)
        return measured_R
    each = [binary_measure(w_RP, label_P == c, score[:, c]) for c in range(score.shape[1])]
    mean_R: Floats = np.mean(each, axis=0)
    return mean_R


def _roc_area(w_RP: Floats, is_one_P: Flags, score_P: Floats) -> Floats:
    return divide(*_pair_counts(w_RP, is_one_P, score_P))


def _roc_area_within_folds(
    group_P: Labels, w_RP: Floats, is_one_P: Flags, score_P: Floats
) -> Floats:
    parts = [_pair_counts(w_RP[:, at], is_one_P[at], score_P[at]) for at in groups(group_P)]
    return divide(sum(right_R for right_R, _ in parts), sum(pairs_R for _, pairs_R in parts))


def _pair_counts(w_RP: Floats, is_one_P: Flags, score_P: Floats) -> tuple[Floats, Floats]:
    """Return the counts [R] of pairs in the right order (ties one half) and of all pairs."""
    one_RU, other_RU = _weights_by_score(w_RP, is_one_P, score_P)
    below_RU = other_RU.cumsum(axis=1) - other_RU
    right_R: Floats = (one_RU * (below_RU + other_RU / 2)).sum(axis=1)
    return right_R, one_RU.sum(axis=1) * other_RU.sum(axis=1)


def _average_precision(w_RP: Floats, is_one_P: Flags, score_P: Floats) -> Floats:
    one_RU, other_RU = (part[:, ::-1] for part in _weights_by_score(w_RP, is_one_P, score_P))
    hits_RU, others_RU = one_RU.cumsum(axis=1), other_RU.cumsum(axis=1)
    precision_RU = np.nan_to_num(divide(hits_RU, hits_RU + others_RU))
    precision_R = divide((one_RU * precision_RU).sum(axis=1), hits_RU[:, -1])
    return np.where(others_RU[:, -1] > 0, precision_R, np.nan)


def _weights_by_score(w_RP: Floats, is_one_P: Flags, score_P: Floats) -> tuple[Floats, Floats]:
    """Return the weights [R, U] of class 1 and of the others at each score, ascending."""
    order_P = np.argsort(score_P, kind="stable")
    starts = np.flatnonzero(np.diff(score_P[order_P], prepend=-np.inf) > 0)
    sorted_RP, is_one = w_RP[:, order_P], is_one_P[order_P]
    one_RU = np.add.reduceat(sorted_RP * is_one, starts, axis=1)
    return one_RU, np.add.reduceat(sorted_RP * ~is_one, starts, axis=1)


def divide(top: Any, bottom: Any) -> Floats:  # noqa: ANN401
    """Return top / bottom, NaN where the latter is 0."""
    shape = np.broadcast_shapes(np.shape(top), np.shape(bottom))
    quotient: Floats = np.full(shape, np.nan)
    np.divide(top, bottom, out=quotient, where=np.asarray(bottom) > 0)
    return quotient


def groups(group_S: Labels) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of each group, in the order of its number."""
    order = np.argsort(group_S, kind="stable")
    cuts = np.flatnonzero(np.diff(group_S[order])) + 1
    yield from np.split(order, cuts)
