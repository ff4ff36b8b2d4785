"""Metrics with patient-bootstrap intervals; scikit-learn and scikit-survival do the computing.

An interval is over patients and not a t-interval over five folds, whose models share most of their
training patients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_MAX_TRIES_PER_RESAMPLE = 100


class UndefinedMetricError(ValueError):
    """The metric has no value on these patients: one class, or no pair to compare."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A metric and its bootstrap interval.

    Attributes:
        estimate: The metric on all patients, not the mean of the resamples.
        low: 2.5th percentile of the resamples.
        high: 97.5th percentile of the resamples.
        redrawn: Resamples on which the metric was undefined and that were drawn again. Many of them
            mean a cohort too small for the interval to be taken at its word.
    """

    estimate: float
    low: float
    high: float
    redrawn: int


def auroc(label: NDArray[np.int64], score: NDArray[np.float64]) -> float:
    """Area under the ROC curve, by `sklearn.metrics.roc_auc_score`.

    Patients of two classes with the same score count one half.

    Args:
        label: [P] class indices.
        score: [P] score of class 1 (higher = more likely class 1), or [P, C] probabilities for C >
            2 classes, which give the unweighted mean of one-against-rest areas.

    Returns:
        0.5 for chance, 1 for a perfect ranking.

    Raises:
        UndefinedMetricError: A class without patients.
    """
    from sklearn.metrics import roc_auc_score

    classes = score.shape[1] if score.ndim > 1 else 2
    present = len(np.unique(label))
    if present < classes:
        msg = f"AUROC needs all {classes} classes; these {len(label)} patients are of {present}"
        raise UndefinedMetricError(msg)
    return float(roc_auc_score(label, score, multi_class="ovr", average="macro"))


def concordance(
    event: NDArray[np.bool_], time: NDArray[np.float64], risk: NDArray[np.float64]
) -> float:
    """Harrell's C, by `sksurv.metrics.concordance_index_censored`.

    A pair can be compared if the one with the shorter time had the event; tied risks (within 1e-8)
    count one half.

    Args:
        event: [P] True where the event was seen.
        time: [P] time to the event or to the end of follow-up.
        risk: [P] HIGHER = WORSE: shorter survival is expected.

    Returns:
        0.5 for chance, 1 if every comparable pair is in order.

    Raises:
        UndefinedMetricError: No pair can be compared.
    """
    from sksurv.exceptions import NoComparablePairException
    from sksurv.metrics import concordance_index_censored

    if not event.any():
        msg = f"concordance needs an event, all {len(event)} patients are censored"
        raise UndefinedMetricError(msg)
    try:
        return float(concordance_index_censored(event, time, risk)[0])
    except NoComparablePairException as error:
        msg = f"concordance: no two of these {len(event)} patients can be compared"
        raise UndefinedMetricError(msg) from error


def bootstrap(
    metric: Callable[..., float], *arrays: NDArray[Any], n: int = 1000, seed: int
) -> Estimate:
    """Percentile bootstrap over patients.

    Patients are drawn with replacement, the same ones from every array; for the difference of two
    models pass a metric that takes both scores, so that it is paired. A resample on which the
    metric is undefined is drawn again and counted, which conditions the interval on resamples where
    the metric exists.

    Args:
        metric: Function of the arrays; raises `UndefinedMetricError` where it has no value.
        *arrays: [P, ...] each, one row per patient.
        n: Resamples that count.
        seed: Same arrays and seed, same interval.

    Returns:
        The estimate with the 2.5th and 97.5th percentile.

    Raises:
        UndefinedMetricError: The metric is undefined on all patients, or on nearly every resample.
    """
    estimate = metric(*arrays)
    rng = np.random.default_rng(seed)
    patients = len(arrays[0])
    values: list[float] = []
    redrawn = 0
    while len(values) < n:
        rows = rng.integers(0, patients, size=patients)
        try:
            values.append(metric(*(array[rows] for array in arrays)))
        except UndefinedMetricError as error:
            redrawn += 1
            if redrawn > _MAX_TRIES_PER_RESAMPLE * n:
                msg = f"undefined on {redrawn} resamples of {patients} patients; add patients"
                raise UndefinedMetricError(msg) from error
    # Interpolating between equal values leaves noise in the last digit: 0.9999999999999999.
    low, high = np.percentile(values, [2.5, 97.5]).round(12)
    return Estimate(estimate=estimate, low=float(low), high=float(high), redrawn=redrawn)
