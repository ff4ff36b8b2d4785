"""Intervals by resampling patients; differences of two models; several comparisons at once.

An interval is over patients, not over folds, whose models share most of their training patients,
nor over slides, several of which may be of one patient.

Shape letters: P patients, S rows of predictions (one or more a patient), R resamples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from downstream.measures.class_measures import Measure, UndefinedMetricError
from downstream.measures.resampling import Draws, Method, draw_all

Floats = NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A measure with its bootstrap interval.

    Attributes:
        estimate: the measure on all patients, not the mean of the resamples.
        low: lower limit.
        high: upper limit.
        level: approximate share of such intervals that contain the true value.
        method: `bca` (bias-corrected and accelerated) or `percentile`.
        resamples: number of resamples in the interval.
        redrawn: number of resamples that were drawn again because the measure was undefined. If it
            is large, the cohort is too small for a reliable interval.
    """

    estimate: float
    low: float
    high: float
    level: float
    method: Method
    resamples: int
    redrawn: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The difference between two fitted models, `one` and `other`, on the same patients.

    The luck of their trainings is not in it: whether one *kind* of model is better than another is
    what `fold_test.corrected_test` tests.

    Attributes:
        difference: gain of `one` over `other`: above 0 is better, whatever the measure's direction.
        p_value: two-sided p value of no difference, from the same bootstrap as the interval.
        margin: non-inferiority margin, or None.
        p_worse: one-sided p value of being worse by the margin or more; None without a margin.
        not_inferior: whether the interval lies above -margin; None without a margin. At level 0.95
            this is a one-sided test at 0.025.
    """

    difference: Interval
    p_value: float
    margin: float | None = None
    p_worse: float | None = None
    not_inferior: bool | None = None


def interval(
    measure: Measure,
    truth: Sequence[NDArray[Any]],
    prediction: NDArray[Any],
    *,
    seed: int | Sequence[int],
    patients: Sequence[str] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    method: Method = "bca",
) -> Interval:
    """Return the bootstrap interval of a measure.

    A patient is drawn with all its rows. A resample on which the measure is undefined is drawn
    again and counted, which conditions the interval on resamples where it exists.

    Args:
        measure: the measure of the predictions.
        truth: true outcomes, arrays [S, ...] with one row per prediction.
        prediction: predictions, [S, ...].
        seed: seed of the resamples; the same arrays and seed return the same interval.
        patients: patient of each row; None if every row is a patient.
        resamples: number of resamples, at least 1000.
        level: level of the interval, in 0..1.
        method: `bca` corrects bias and skewness (Efron 1987) and needs the measure without each
            patient in turn; `percentile` does not.

    Raises:
        ValueError: Too few resamples, a level that is none, or rows that do not fit.
        UndefinedMetricError: The measure is undefined on all patients, on nearly every resample, or
            (for `bca`) without some patient.
    """
    draws = draw_all(measure, truth, (prediction,), seed, patients, resamples, level, method)
    return _interval(draws, draws.values[0], level)


def compare(
    measure: Measure,
    truth: Sequence[NDArray[Any]],
    one: NDArray[Any],
    other: NDArray[Any],
    *,
    seed: int,
    margin: float | None = None,
    patients: Sequence[str] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    method: Method = "bca",
) -> Comparison:
    """Return how much better model `one` is than `other`, with interval and p values.

    Both are measured on the same resamples, so that the difficulty of a patient for both cancels.
    With a margin it is also tested whether `one` is not worse than `other` by the margin or more.

    Args:
        measure: the measure of the predictions.
        truth: true outcomes, arrays [S, ...].
        one: predictions [S, ...] of a model, such as the student.
        other: predictions [S, ...] of the model to compare with, such as a teacher.
        seed: seed of the resamples; the same arrays and seed return the same comparison.
        margin: non-inferiority margin above 0 in the measure's unit, chosen in advance; None for no
            such test.
        patients: see `interval`.
        resamples: see `interval`.
        level: see `interval`.
        method: see `interval`.

    Raises:
        ValueError: See `interval`; also a margin that is not above 0.
        UndefinedMetricError: See `interval`.
    """
    if margin is not None and not margin > 0:
        msg = f"margin={margin}; give how much worse still counts as not worse, above 0"
        raise ValueError(msg)
    draws = draw_all(measure, truth, (one, other), seed, patients, resamples, level, method)
    sign = 1 if measure.higher_is_better else -1
    parts = [sign * (part[0] - part[1]) for part in (draws.values, draws.whole, draws.without)]
    gap = Draws(values=parts[0][None], whole=parts[1][None], without=parts[2][None],
                 redrawn=draws.redrawn, method=method)  # fmt: skip
    gap_interval = _interval(gap, parts[0], level)
    below = _one_sided_p(gap, 0.0)
    two_sided = min(1.0, 2 * min(below, 1 - below))
    if margin is None:
        return Comparison(difference=gap_interval, p_value=two_sided)
    return Comparison(
        difference=gap_interval,
        p_value=two_sided,
        margin=margin,
        p_worse=_one_sided_p(gap, -margin),
        not_inferior=gap_interval.low > -margin,
    )


def bca_or_percentile(estimate: Callable[..., T]) -> T:
    """Return an estimate with its interval by BCa, or by percentiles where BCa has none.

    BCa needs the measure without each patient in turn, which does not exist where one patient is
    the only one of a class.

    Args:
        estimate: function of the keyword `method`, such as `interval` or `compare` with all other
            arguments bound by `functools.partial`.

    Raises:
        UndefinedMetricError: The measure is undefined on these patients.
    """
    try:
        return estimate(method="bca")
    except UndefinedMetricError:
        return estimate(method="percentile")


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p values corrected for several comparisons by Holm's step-down method, order kept.

    Rejecting at a level of these p values keeps the family-wise error at that level, with no
    assumption on how the comparisons depend on each other.

    >>> {k: round(p, 3) for k, p in holm({"a": 0.01, "b": 0.04, "c": 0.03}).items()}
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    corrected, least = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = least
    return {name: corrected[name] for name in p_values}


def _interval(draws: Draws, values_R: Floats, level: float) -> Interval:
    """Return the interval of one model's estimate from its bootstrap values."""
    from scipy.special import ndtr, ndtri

    bias, bend = _bca_corrections(draws)
    tail = ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    at = ndtr(bias + (bias + tail) / (1 - bend * (bias + tail)))
    # interpolating between equal values leaves noise in the last digit: 0.9999999999999999
    low, high = np.quantile(values_R, at).round(12)
    return Interval(
        estimate=float(draws.whole[0]),
        low=float(low),
        high=float(high),
        level=level,
        method=draws.method,
        resamples=len(values_R),
        redrawn=draws.redrawn,
    )


def _bca_corrections(draws: Draws) -> tuple[float, float]:
    """Return BCa's bias correction and acceleration; 0 and 0 for percentiles.

    Source: Efron and Tibshirani 1993, eq. 14.14 and 14.15, with ties counted one half.
    """
    from scipy.special import ndtri

    if draws.method == "percentile":
        return 0.0, 0.0
    apart_P = draws.without[0].mean() - draws.without[0]
    spread = (apart_P**2).sum() ** 1.5
    # what is equal up to rounding has no skewness
    bend = (apart_P**3).sum() / (6 * spread) if np.ptp(draws.without[0]) > 1e-12 else 0.0
    return float(ndtri(_share_of_resamples_below(draws, float(draws.whole[0])))), float(bend)


def _one_sided_p(draws: Draws, at: float) -> float:
    """Return the one-sided p value of the hypothesis that the estimate is at most `at`."""
    from scipy.special import ndtr, ndtri

    bias, bend = _bca_corrections(draws)
    apart = float(ndtri(_share_of_resamples_below(draws, at))) - bias
    return float(ndtr(apart / (1 + bend * apart) - bias))


def _share_of_resamples_below(draws: Draws, at: float) -> float:
    """Return the share of resamples below `at`, ties one half, and never exactly 0 or 1."""
    values_R = draws.values[0]
    below = (values_R < at - 1e-12).mean() / 2 + (values_R <= at + 1e-12).mean() / 2
    least = 0.5 / len(values_R)
    return float(np.clip(below, least, 1 - least))
