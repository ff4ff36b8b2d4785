"""Bootstrap over patients of what is known of each sample, for all columns on the same resamples.

The features are frozen and neighbours are not sought again: an interval says how far a number
depends on which patients are in the cohort.

Shape letters: N samples, P patients, R resamples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Statistic = Callable[[Floats], Floats]
"""Function of weights of samples [R, N] to a number [R]; NaN where it is undefined."""

RESAMPLES = 2000
LEVEL = 0.95
_CELLS = 4_000_000
_LEAST_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class BootstrapEstimate:
    """A number with its values on the resamples of patients.

    Attributes:
        whole: the number on all samples; NaN where it is undefined.
        draws: the number on each resample [R]; NaN where it is undefined.
    """

    whole: float
    draws: Floats

    def limits(self) -> tuple[float, float] | None:
        """Return the limits of the 95 % percentile interval; None if most resamples have none."""
        return limits_of(self.draws)


def limits_of(draws_R: Floats) -> tuple[float, float] | None:
    """Return the limits of the 95 % percentile interval; None if most resamples have no value."""
    defined = draws_R[np.isfinite(draws_R)]
    if len(defined) < _LEAST_SHARE * len(draws_R):
        return None
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).round(12)
    return float(low), float(high)


def patient_weights(patients: int, *, seed: int, resamples: int = RESAMPLES) -> Floats:
    """Return how often each patient is drawn in each resample [R, P]."""
    rng = np.random.default_rng([seed, patients])
    return rng.multinomial(patients, np.full(patients, 1 / patients), resamples).astype(np.float64)


def estimated(statistic: Statistic, weight_RP: Floats, patient_N: Codes) -> BootstrapEstimate:
    """Return a statistic with its values on resamples, in which a patient's samples go together."""
    whole = statistic(np.ones((1, len(patient_N))))[0]
    step = max(1, _CELLS // max(1, len(patient_N)))
    chunks = [weight_RP[start : start + step] for start in range(0, len(weight_RP), step)]
    draws = np.concatenate([statistic(chunk[:, patient_N]) for chunk in chunks])
    return BootstrapEstimate(whole=float(whole), draws=draws)


def ratio(part_N: Floats, whole_N: Floats) -> Statistic:
    """Return the statistic `sum part / sum whole`.

    >>> ratio(np.array([1.0, 0.0]), np.array([2.0, 2.0]))(np.array([[1.0, 1.0], [1.0, 0.0]]))
    array([0.25, 0.5 ])
    """

    def statistic(weight_RN: Floats) -> Floats:
        total_R = weight_RN @ whole_N
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.where(total_R > 0, weight_RN @ part_N / total_R, np.nan))

    return statistic


def median(value_N: Floats) -> Statistic:
    """Return the median of the values that are no NaN, as `numpy.median` of repeated values."""
    ordered = _Ordered(value_N)

    def statistic(weight_RN: Floats) -> Floats:
        sorted_RN, count_R = ordered.weights(weight_RN)
        low = ordered.at_rank(sorted_RN, np.floor((count_R - 1) / 2))
        high = ordered.at_rank(sorted_RN, np.floor(count_R / 2))
        return np.where(count_R > 0, (low + high) / 2, np.nan)

    return statistic


def worst_tenth(value_N: Floats) -> Statistic:
    """Return the mean of the values up to the tenth percentile, without those that are NaN."""
    ordered = _Ordered(value_N)

    def statistic(weight_RN: Floats) -> Floats:
        sorted_RN, count_R = ordered.weights(weight_RN)
        place_R = 0.1 * np.maximum(count_R - 1, 0)
        low = ordered.at_rank(sorted_RN, np.floor(place_R))
        high = ordered.at_rank(sorted_RN, np.minimum(np.floor(place_R) + 1, count_R - 1))
        limit_R = low + (place_R - np.floor(place_R)) * (high - low)
        in_tail = sorted_RN * (ordered.values <= limit_R[:, None])
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(in_tail @ ordered.values / in_tail.sum(axis=1))

    return statistic


def mean_recall(is_hit_N: NDArray[np.bool_], code_N: Codes) -> Statistic:
    """Return the mean over codes of the share of hits: a balanced accuracy."""
    one_hot_NC = np.eye(int(code_N.max()) + 1)[code_N]

    def statistic(weight_RN: Floats) -> Floats:
        total_RC = weight_RN @ one_hot_NC
        hit_RC = (weight_RN * is_hit_N) @ one_hot_NC
        with np.errstate(invalid="ignore", divide="ignore"):
            recall_RC = np.where(total_RC > 0, hit_RC / total_RC, np.nan)
        present_RC = np.isfinite(recall_RC)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(
                np.where(present_RC, recall_RC, 0).sum(axis=1) / present_RC.sum(axis=1)
            )

    return statistic


class _Ordered:
    """Values in order, of which weighted ranks are asked."""

    def __init__(self, value_N: NDArray[Any]) -> None:
        rows = np.flatnonzero(np.isfinite(value_N))
        self._rows = rows[np.argsort(value_N[rows], kind="stable")]
        self.values: Floats = np.asarray(value_N, dtype=np.float64)[self._rows]

    def weights(self, weight_RN: Floats) -> tuple[Floats, Floats]:
        """Return the weights of the ordered values [R, N], and their sums [R]."""
        sorted_RN = weight_RN[:, self._rows]
        return sorted_RN, sorted_RN.sum(axis=1)

    def at_rank(self, sorted_RN: Floats, rank_R: Floats) -> Floats:
        """Return the value at a rank, from 0, of the repeated values [R]; NaN without values."""
        if not len(self.values):
            return np.full(len(sorted_RN), np.nan)
        above_RN = np.cumsum(sorted_RN, axis=1) > rank_R[:, None]
        return self.values[np.where(above_RN.any(axis=1), above_RN.argmax(axis=1), 0)]
