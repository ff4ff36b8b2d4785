"""Points of a classifier's curves, and confidence bands over patients.

A patient is drawn with all its rows, as in `intervals.interval`, so that predictions of several
repeats or seeds do not make a band narrower than the cohort allows.

Shape letters: S rows of predictions (one or more a patient), P patients, U different scores,
G points of a grid, K bins, R resamples.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from downstream.measures.class_measures import UndefinedMetricError

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


GRID = np.linspace(0, 1, 101)
"""Where bands are taken."""

_LIMITS = (2.5, 97.5)


@dataclass(frozen=True, kw_only=True)
class CurveScores:
    """Scores of one class, one row per prediction.

    Attributes:
        label: int64[S] 1 for the class, 0 for others.
        score: float64[S] higher = more likely the class.
        patients: patient of each row; None if every row is a patient.
    """

    label: Labels
    score: Floats
    patients: Sequence[str] | None = None

    @property
    def owner(self) -> Labels:
        """Return the number of each row's patient [S]."""
        if self.patients is None:
            return np.arange(len(self.label))
        return np.unique(np.asarray(self.patients), return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Bins:
    """Predicted probabilities and observed shares of a class, bin by bin.

    Attributes:
        predicted: [K] mean probability.
        observed: [K] share of rows of the class.
        low: [K] 2.5th percentile of the share over resamples of patients.
        high: [K] 97.5th percentile of the share over resamples of patients.
        rows: [K] number of predictions in the bin.
    """

    predicted: Floats
    observed: Floats
    low: Floats
    high: Floats
    rows: Labels


def roc_points(scores: CurveScores) -> tuple[Floats, Floats]:
    """Return the points of a ROC curve: false and true positive rates, (0, 0) to (1, 1).

    Raises:
        UndefinedMetricError: All rows are of one class.
    """
    true_U, false_U = _positive_counts(_by_falling_score("a ROC curve", scores))
    return np.r_[0, false_U / false_U[-1]], np.r_[0, true_U / true_U[-1]]


def precision_recall_points(scores: CurveScores) -> tuple[Floats, Floats]:
    """Return recall and precision at each score, from the highest down.

    Raises:
        UndefinedMetricError: All rows are of one class.
    """
    true_U, false_U = _positive_counts(_by_falling_score("a precision-recall curve", scores))
    return true_U / true_U[-1], true_U / (true_U + false_U)


def roc_band(scores: CurveScores, *, n: int, seed: int) -> tuple[Floats, Floats]:
    """Return pointwise 2.5th and 97.5th percentiles of sensitivity at the rates of `GRID`.

    Raises:
        UndefinedMetricError: All rows are of one class.
    """

    def curve(true_U: Floats, false_U: Floats) -> Floats:
        rates = np.r_[0, false_U / false_U[-1]], np.r_[0, true_U / true_U[-1]]
        return np.interp(GRID, *rates)

    return _band(_by_falling_score("a ROC curve", scores), curve, n=n, seed=seed)


def precision_recall_band(scores: CurveScores, *, n: int, seed: int) -> tuple[Floats, Floats]:
    """Return pointwise 2.5th and 97.5th percentiles of precision at the recalls of `GRID`.

    Between the recalls of two scores the precision is that of the lower score: precision is not
    linear between them (Davis and Goadrich 2006).

    Raises:
        UndefinedMetricError: All rows are of one class.
    """

    def curve(true_U: Floats, false_U: Floats) -> Floats:
        reached = np.flatnonzero(true_U)[0]
        precision_U = true_U[reached:] / (true_U + false_U)[reached:]
        # rounding must not push the last recall past the end
        at = np.searchsorted(true_U[reached:] / true_U[-1], GRID - 1e-12)
        return precision_U[np.minimum(at, len(precision_U) - 1)]

    return _band(_by_falling_score("a precision-recall curve", scores), curve, n=n, seed=seed)


def reliability(scores: CurveScores, *, bins: int = 10, n: int = 500, seed: int = 0) -> Bins:
    """Return predicted probabilities and observed shares in bins of about equally many rows.

    Raises:
        UndefinedMetricError: There is no row.
    """
    if not len(scores.label):
        msg = "a reliability curve needs predictions; there are none"
        raise UndefinedMetricError(msg)
    edges = np.unique(np.quantile(scores.score, np.linspace(0, 1, bins + 1)[1:-1]))
    bin_S = np.searchsorted(edges, scores.score, side="left")
    names, bin_S = np.unique(bin_S, return_inverse=True)
    rows = np.bincount(bin_S)
    shares = []
    for weight_S in _resamples(scores, n=n, seed=seed):
        counts = np.bincount(bin_S, weights=weight_S, minlength=len(names))
        ones = np.bincount(bin_S, weights=weight_S * scores.label, minlength=len(names))
        shares.append(np.divide(ones, counts, out=np.full(len(names), np.nan), where=counts > 0))
    low, high = np.nanpercentile(np.array(shares), _LIMITS, axis=0)
    return Bins(
        predicted=np.bincount(bin_S, weights=scores.score) / rows,
        observed=np.bincount(bin_S, weights=scores.label) / rows,
        low=low,
        high=high,
        rows=rows,
    )


def _by_falling_score(name: str, scores: CurveScores) -> CurveScores:
    """Return the rows sorted from the highest score down, so that a resample is two sums."""
    if len(np.unique(scores.label)) < 2:
        msg = f"{name} needs patients of both classes, all {len(scores.label)} are of one"
        raise UndefinedMetricError(msg)
    order = np.argsort(-scores.score, kind="stable")
    owners = [str(number) for number in scores.owner[order]]
    return CurveScores(label=scores.label[order], score=scores.score[order], patients=owners)


def _positive_counts(falling: CurveScores, weight_S: Floats | None = None) -> tuple[Floats, Floats]:
    """Return the numbers of true and of false positives [U] at each score, highest first."""
    ends = np.flatnonzero(np.diff(falling.score, append=-np.inf))
    weight_S = np.ones(len(falling.label)) if weight_S is None else weight_S
    true_S, false_S = weight_S * falling.label, weight_S * (1 - falling.label)
    return np.cumsum(true_S)[ends], np.cumsum(false_S)[ends]


def _band(
    scores: CurveScores, curve: Callable[[Floats, Floats], Floats], *, n: int, seed: int
) -> tuple[Floats, Floats]:
    """Return the 2.5th and 97.5th percentile of a curve over resamples with both classes."""
    weights = _resamples(scores, n=n, seed=seed, both=True)
    drawn = [curve(*_positive_counts(scores, weight_S)) for weight_S in weights]
    low, high = np.percentile(drawn, _LIMITS, axis=0)
    return low, high


def _resamples(scores: CurveScores, *, n: int, seed: int, both: bool = False) -> Iterator[Floats]:
    """Yield n resamples as weights [S]; with `both`, a resample without a class is redrawn."""
    rng, owner_S = np.random.default_rng(seed), scores.owner
    count, made = int(owner_S.max()) + 1, 0
    while made < n:
        drawn_P = np.bincount(rng.integers(0, count, size=count), minlength=count)
        weight_S = drawn_P[owner_S].astype(np.float64)
        positive = float(weight_S @ scores.label)
        if not both or 0 < positive < weight_S.sum():
            made += 1
            yield weight_S
