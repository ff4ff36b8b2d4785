"""How good predicted classes are, and intervals of that over patients.

Letters in names: N tiles, P patients, C classes, R resamples.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000

Array = npt.NDArray[np.floating]
Counts = npt.NDArray[np.integer]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


def confusion(truth_N: Int64Array, predicted_N: Int64Array, classes: Sequence[int]) -> Int64Array:
    """How many tiles of each class (rows) were given each class (columns) [C, C]."""
    order = np.sort(np.asarray(classes))
    at = np.searchsorted(order, truth_N) * len(order) + np.searchsorted(order, predicted_N)
    return np.bincount(at, minlength=len(order) ** 2).reshape(len(order), len(order))


def balanced_of(counts_CC: Counts) -> Float64Array:
    """Mean recall over the classes that are there, of tables [..., C, C]; NaN without tiles."""
    there = counts_CC.sum(axis=-1)
    right = np.diagonal(counts_CC, axis1=-2, axis2=-1)
    recall = np.where(there > 0, right / np.maximum(there, 1), 0.0)
    classes = (there > 0).sum(axis=-1)
    return np.where(classes > 0, recall.sum(axis=-1) / np.maximum(classes, 1), np.nan)


def f1_of(counts_CC: Counts) -> Float64Array:
    """Mean F1 over the classes that are there or were given, of tables [..., C, C]."""
    total = counts_CC.sum(axis=-1) + counts_CC.sum(axis=-2)
    right = np.diagonal(counts_CC, axis1=-2, axis2=-1)
    f1 = np.where(total > 0, 2 * right / np.maximum(total, 1), 0.0)
    classes = (total > 0).sum(axis=-1)
    return np.where(classes > 0, f1.sum(axis=-1) / np.maximum(classes, 1), np.nan)


def balanced_accuracy(truth_N: Int64Array, predicted_N: Int64Array) -> float:
    """Mean recall over the classes that are there."""
    classes = np.union1d(truth_N, predicted_N).tolist()
    return float(balanced_of(confusion(truth_N, predicted_N, classes)))


def class_scores(
    truth_N: Int64Array, predicted_N: Int64Array, group_N: Int64Array, *, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Balanced accuracy and macro F1 with 95 % intervals over patients.

    Patients are drawn with replacement, 1000 times; a patient's tiles are drawn together.

    Returns:
        `estimate`, `low`, `high` of `balanced_accuracy` and `macro_f1`.
    """
    classes = np.union1d(truth_N, predicted_N).tolist()
    groups, index_N = np.unique(group_N, return_inverse=True)
    parts_PCC = np.stack(
        [
            confusion(truth_N[index_N == g], predicted_N[index_N == g], classes)
            for g in range(len(groups))
        ]
    )
    drawn_RCC = np.tensordot(draws(len(groups), seed), parts_PCC, axes=1)
    whole = parts_PCC.sum(axis=0)
    return {
        name: interval(float(measure(whole)), measure(drawn_RCC), groups=len(groups))
        for name, measure in (("balanced_accuracy", balanced_of), ("macro_f1", f1_of))
    }


def mean_scores(
    values: dict[str, Float64Array], group_N: Int64Array, *, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Means of values per tile with 95 % intervals over patients; NaN is left out."""
    groups, index_N = np.unique(group_N, return_inverse=True)
    weights = draws(len(groups), seed)
    found = {}
    for name, value_N in values.items():
        known = ~np.isnan(value_N)
        sums = np.bincount(index_N[known], value_N[known], minlength=len(groups))
        counts = np.bincount(index_N[known], minlength=len(groups))
        drawn = weights @ sums / np.where(weights @ counts, weights @ counts, np.nan)
        mean = float(sums.sum() / counts.sum()) if counts.sum() else float("nan")
        found[name] = interval(mean, drawn, groups=len(groups))
    return found


def draws(groups: int, seed: int) -> Int64Array:
    """How often each of so many patients is in each resample [R, P]."""
    random = np.random.default_rng((seed, groups))
    return random.multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES)


def interval(estimate: float, drawn_R: Array, *, groups: int) -> dict[str, float]:
    """The estimate with the 2.5th and 97.5th percentile of what resamples gave.

    One patient says nothing of others: the percentiles are then NaN.
    """
    known = drawn_R[~np.isnan(drawn_R)]
    told = groups > 1 and len(known)
    low, high = np.percentile(known, [2.5, 97.5]) if told else (np.nan, np.nan)
    return {"estimate": estimate, "low": float(low), "high": float(high)}
