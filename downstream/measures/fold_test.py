"""The comparison of two models that carries the luck of training: the corrected resampled t test.

A bootstrap over patients holds the fitted models fixed, so that two feature sets of equal worth
differ "significantly" by the luck of their trainings: in 15 of 100 cohorts where 5 are allowed.
Here the difference is measured on each test part, whose models were trained anew, and its variance
is enlarged for what the training parts share (Nadeau and Bengio 2003).

Shape letters: J test parts (one per repetition and fold), S rows of predictions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from downstream.measures.class_measures import Measure
from downstream.measures.resampling import estimates_of_weights

if TYPE_CHECKING:
    from downstream.splits.split import Split

Floats = NDArray[np.float64]

_LEVEL = 0.95
_SAME = 1e-12


@dataclass(frozen=True, kw_only=True)
class FoldTest:
    """The difference between two models over test parts, with the luck of training.

    Attributes:
        parts: number of test parts on which both models have the measure.
        left_out: number of test parts on which one of them has not.
        estimate: mean over parts of the gain of one model over the other: above 0 is better; None
            without a test part.
        low: lower limit of the 95 % interval; None where there is no test.
        high: upper limit.
        p_value: two-sided p value of no difference; None where there is no test.
        p_worse: one-sided p value of being worse by the margin or more; None without a margin.
        not_inferior: whether the interval lies above -margin; None without a margin.
        why: why there is no test; empty where there is one.
    """

    parts: int
    left_out: int = 0
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    p_worse: float | None = None
    not_inferior: bool | None = None
    why: str = ""


def part_values(
    measure: Measure,
    truth: Sequence[NDArray[Any]],
    prediction: NDArray[Any],
    part_S: NDArray[np.int64],
) -> Floats:
    """Return a measure on each test part [J]; NaN where it is undefined.

    Args:
        measure: the measure of the predictions.
        truth: true outcomes, arrays [S, ...].
        prediction: predictions, [S, ...].
        part_S: number of each row's test part, 0 to J - 1.
    """
    parts = int(part_S.max()) + 1
    member_JS = (part_S == np.arange(parts)[:, None]).astype(np.float64)
    return estimates_of_weights(measure, member_JS, truth, prediction)


def overlap_of(splits: Iterable["Split"]) -> float:
    """Return the patients of a test part over those its models were trained on, mean over parts.

    >>> from downstream.splits.split import Split
    >>> overlap_of([Split(train=("a", "b"), validation=("c",), test=("d",), repeat=0, fold=0)])
    0.3333333333333333
    """
    first = {(split.repeat, split.fold): split for split in reversed(list(splits))}
    shares = [len(one.test) / (len(one.train) + len(one.validation)) for one in first.values()]
    return float(np.mean(shares))


def corrected_test(
    one_J: Floats,
    other_J: Floats,
    *,
    overlap: float,
    higher_is_better: bool = True,
    margin: float | None = None,
) -> FoldTest:
    """Return the corrected resampled t test of two models' measures on the same test parts.

    The variance of the mean difference is (1 / J + overlap) times that of the differences, on
    J - 1 degrees of freedom.

    Args:
        one_J: measure of a model on each test part; NaN where it is undefined.
        other_J: measure of the other model.
        overlap: patients of a test part over patients that its models were trained on.
        higher_is_better: direction of the measure.
        margin: non-inferiority margin above 0 in the measure's unit; None for no such test.

    Source:
        Nadeau and Bengio 2003, "Inference for the generalization error", Machine Learning 52,
        section 5.

    Examples:
        >>> one, other = np.array([0.8, 0.7, 0.9, 0.8]), np.array([0.7, 0.7, 0.7, 0.7])
        >>> test = corrected_test(one, other, overlap=1 / 3)
        >>> round(test.estimate, 3), round(test.p_value, 3)
        (0.1, 0.207)
    """
    both = np.isfinite(one_J) & np.isfinite(other_J)
    gain_J = (one_J - other_J)[both] * (1 if higher_is_better else -1)
    parts, left_out = len(gain_J), int((~both).sum())
    mean = float(gain_J.mean()) if parts else None
    why = _why_no_test(gain_J)
    if mean is None or why:
        return FoldTest(parts=parts, left_out=left_out, estimate=mean, why=why)
    freedom, spread = parts - 1, float(gain_J.var(ddof=1))
    error = float(np.sqrt((1 / parts + overlap) * spread)) if spread > _SAME else 0.0
    reach = _t_quantile(freedom) * error
    return FoldTest(
        parts=parts,
        left_out=left_out,
        estimate=mean,
        low=mean - reach,
        high=mean + reach,
        p_value=2 * _tail(abs(mean), error, freedom),
        p_worse=None if margin is None else _tail(mean + margin, error, freedom),
        not_inferior=None if margin is None else mean - reach > -margin,
    )


def _why_no_test(gain_J: Floats) -> str:
    """Return why there is no test of these differences; empty if there is one."""
    if not len(gain_J):
        return "the measure is undefined on every test part"
    if len(gain_J) == 1:
        return "one test part shows no luck of training; use several folds or repetitions"
    if gain_J.var(ddof=1) <= _SAME and abs(gain_J.mean()) > _SAME:
        return f"the difference is the same on all {len(gain_J)} test parts"
    return ""


def _tail(distance: float, error: float, freedom: int) -> float:
    """Return the chance of a difference this far above its true value, or farther."""
    from scipy.special import stdtr

    if error:
        return float(stdtr(freedom, -distance / error))
    return 0.5 if abs(distance) <= _SAME else float(distance < 0)


def _t_quantile(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + _LEVEL) / 2))
