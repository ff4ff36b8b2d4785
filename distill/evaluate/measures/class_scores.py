"""Scores of predicted classes, with bootstrap intervals over patients.

Shape letters: N tiles, C classes, R resamples.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from downstream.measures import Measure, interval, measure_of

RESAMPLES = 1000

Counts = npt.NDArray[np.number]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


def confusion(truth_N: Int64Array, predicted_N: Int64Array, classes: Sequence[int]) -> Int64Array:
    """Count the tiles of each class (rows) by predicted class (columns) [C, C]."""
    order = np.sort(np.asarray(classes))
    at = np.searchsorted(order, truth_N) * len(order) + np.searchsorted(order, predicted_N)
    return np.bincount(at, minlength=len(order) ** 2).reshape(len(order), len(order))


def balanced_accuracy_of(counts_CC: Counts) -> Float64Array:
    """Return the mean recall over the classes with tiles, for tables [..., C, C]; else NaN."""
    total = counts_CC.sum(axis=-1)
    correct = np.diagonal(counts_CC, axis1=-2, axis2=-1)
    recall = np.where(total > 0, correct / np.maximum(total, 1), 0.0)
    classes = (total > 0).sum(axis=-1)
    return np.where(classes > 0, recall.sum(axis=-1) / np.maximum(classes, 1), np.nan)


def f1_of(counts_CC: Counts) -> Float64Array:
    """Return the mean F1 over the classes with tiles or predictions, for tables [..., C, C]."""
    total = counts_CC.sum(axis=-1) + counts_CC.sum(axis=-2)
    correct = np.diagonal(counts_CC, axis1=-2, axis2=-1)
    f1 = np.where(total > 0, 2 * correct / np.maximum(total, 1), 0.0)
    classes = (total > 0).sum(axis=-1)
    return np.where(classes > 0, f1.sum(axis=-1) / np.maximum(classes, 1), np.nan)


def balanced_accuracy(truth_N: Int64Array, predicted_N: Int64Array) -> float:
    """Return the mean recall over the classes with tiles."""
    classes = np.union1d(truth_N, predicted_N).tolist()
    return float(balanced_accuracy_of(confusion(truth_N, predicted_N, classes)))


def class_scores(
    truth_N: Int64Array, predicted_N: Int64Array, group_N: Int64Array, *, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Score predictions by balanced accuracy and macro F1, with 95 % intervals over patients.

    Patients are drawn with replacement, 1000 times; a patient's tiles are drawn together.

    Returns:
        `estimate`, `low`, `high` of `balanced_accuracy` and `macro_f1`.
    """
    classes = np.union1d(truth_N, predicted_N)
    cell_N = np.searchsorted(classes, truth_N) * len(classes)
    cell_N = cell_N + np.searchsorted(classes, predicted_N)
    return {
        name: interval_over_patients(
            measure_of(name, partial(_score_of_cells, score, len(classes))),
            cell_N,
            group_N,
            seed=seed,
        )
        for name, score in (("balanced_accuracy", balanced_accuracy_of), ("macro_f1", f1_of))
    }


def _score_of_cells(
    score: Callable[[Counts], Float64Array], classes: int, weight_RN: Float64Array, cell_N: Counts
) -> Float64Array:
    """Score resamples [R] of tiles by the cell of the confusion table in which each tile is."""
    in_cell = np.eye(classes**2)[cell_N]
    return score((weight_RN @ in_cell).reshape(len(weight_RN), classes, classes))


def mean_scores(
    scores: dict[str, Float64Array], group_N: Int64Array, *, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Average scores per tile, with 95 % intervals over patients; NaN is left out."""
    return {
        name: interval_over_patients(measure_of(name, _mean_score), score_N, group_N, seed=seed)
        for name, score_N in scores.items()
    }


def _mean_score(weight_RN: Float64Array, score_N: Float64Array) -> Float64Array:
    """Average the scores that are not NaN in resamples [R]; NaN where there is none."""
    is_number = ~np.isnan(score_N)
    sum_R = weight_RN @ np.where(is_number, score_N, 0)
    count_R = weight_RN @ is_number
    mean_R: Float64Array = sum_R / np.where(count_R > 0, count_R, np.nan)
    return mean_R


def interval_over_patients(
    measure: Measure, score_N: npt.NDArray[Any], group_N: Int64Array, *, seed: int = 0
) -> dict[str, float]:
    """Compute a measure with the 2.5th and 97.5th percentile over resamples of patients.

    With a single patient the percentiles are NaN.

    Returns:
        `estimate`, `low` and `high`.
    """
    patients = np.unique(group_N)
    if len(patients) < 2:
        return {"estimate": measure.value(score_N), "low": float("nan"), "high": float("nan")}
    # As text of equal length, so that patients are in the order of their numbers.
    names = [f"{number:012d}" for number in group_N.tolist()]
    bootstrap = interval(
        measure,
        (),
        score_N,
        seed=(seed, len(patients)),
        patients=names,
        resamples=RESAMPLES,
        method="percentile",
    )
    return {"estimate": bootstrap.estimate, "low": bootstrap.low, "high": bootstrap.high}
