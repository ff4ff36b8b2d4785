"""Selective prediction: confidence thresholds, and risk by coverage.

A threshold is chosen on validation predictions and records their patients; applying it to one of
these patients as a test patient is refused.

Shape letters: P patients, C classes.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from downstream.splits.split import LeakageError

if TYPE_CHECKING:
    from downstream.splits.folds import Part

Floats = NDArray[np.float64]


class AbstentionError(ValueError):
    """An error for predictions or a target that selective prediction cannot use."""


@dataclass(frozen=True, kw_only=True)
class ClassPredictions:
    """A model's output on one part of a split.

    Attributes:
        patients: ids of the patients.
        probabilities: float64[P, C].
        labels: int64[P] class indices.
        part: `train`, `validation` or `test`.

    Raises:
        AbstentionError: Arrays that do not fit, or nobody.
    """

    patients: tuple[str, ...]
    probabilities: Floats
    labels: NDArray[np.int64]
    part: "Part"

    def __post_init__(self) -> None:
        """Check the shapes of the arrays."""
        shape = self.probabilities.shape
        rows = {len(self.patients), len(self.probabilities), len(self.labels)}
        if rows == {0} or len(rows) != 1 or len(shape) != 2 or shape[1] < 2:
            msg = (
                f"{len(self.patients)} patients, probabilities {shape}, {len(self.labels)} "
                "labels; give a row a patient, and two columns at least"
            )
            raise AbstentionError(msg)

    @property
    def confidence(self) -> Floats:
        """Return the probability of the likeliest class [P]."""
        sure_P: Floats = self.probabilities.max(axis=1)
        return sure_P

    @property
    def is_correct(self) -> NDArray[np.bool_]:
        """Whether the likeliest class is the label [P]."""
        correct_P: NDArray[np.bool_] = self.probabilities.argmax(axis=1) == self.labels
        return correct_P


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The confidence from which on a prediction is answered (selective prediction).

    Attributes:
        value: least confidence; infinite if no threshold reaches the target.
        target: target accuracy on the answered predictions.
        accuracy: accuracy on the answered validation predictions; NaN if none is.
        coverage: share of the validation predictions that is answered.
        patients: patients on whose predictions it was chosen.
    """

    value: float
    target: float
    accuracy: float
    coverage: float
    patients: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class RiskCoverage:
    """The share of errors among the surest predictions, at every coverage.

    Attributes:
        coverage: k / P for k = 1 .. P.
        risk: expected share of errors among the k surest; ties are taken in any order.
        aurc: mean risk over coverages; lower is better.
        optimal_aurc: the least possible with as many errors: all of them last.
    """

    coverage: Floats
    risk: Floats
    aurc: float
    optimal_aurc: float


def choose_threshold(validation: ClassPredictions, *, target: float) -> Threshold:
    """Return the threshold that answers most validation patients at a target accuracy.

    Patients of equal confidence are kept or left out together. The target holds on the validation;
    on new patients accuracy varies about it, the more so the fewer were kept.

    Args:
        validation: predictions of validation patients.
        target: least accuracy on the answered patients, such as 0.97.

    Raises:
        LeakageError: The predictions are not of a validation part.
        AbstentionError: The target is not in 0..1.
    """
    if validation.part != "validation":
        msg = f"a threshold from {validation.part} predictions; choose it on validation patients"
        raise LeakageError(msg)
    if not 0 < target <= 1:
        msg = f"target={target}; give the accuracy of what is kept, above 0 and at most 1"
        raise AbstentionError(msg)
    sure_P = validation.confidence
    levels = np.unique(sure_P)[::-1]
    kept = [sure_P >= level for level in levels]
    reached = [at for at, keep in enumerate(kept) if validation.is_correct[keep].mean() >= target]
    last = reached[-1] if reached else None
    return Threshold(
        value=np.inf if last is None else float(levels[last]),
        target=target,
        accuracy=np.nan if last is None else float(validation.is_correct[kept[last]].mean()),
        coverage=0.0 if last is None else float(kept[last].mean()),
        patients=frozenset(validation.patients),
    )


def is_answered(predictions: ClassPredictions, threshold: Threshold) -> NDArray[np.bool_]:
    """Return whether each prediction is answered [P]; the others are abstentions.

    Raises:
        LeakageError: The threshold was chosen on one of these test patients.
    """
    reused_patients = sorted(set(predictions.patients) & threshold.patients)
    if predictions.part == "test" and reused_patients:
        msg = (
            f"{len(reused_patients)} test patients helped to choose the threshold, for example "
            f"{', '.join(reused_patients[:5])}; choose it on validation patients alone"
        )
        raise LeakageError(msg)
    answered_P: NDArray[np.bool_] = predictions.confidence >= threshold.value
    return answered_P


def risk_coverage(confidence_P: Floats, is_correct_P: NDArray[np.bool_]) -> RiskCoverage:
    """Return the error by share answered, from the surest on (Geifman and El-Yaniv 2017).

    Patients of equal confidence come in any order: the risk within them is the mean over orders, so
    that a constant confidence has the same risk at every coverage.

    Raises:
        AbstentionError: No patient, or arrays of different lengths.
    """
    patients = len(confidence_P)
    if not patients or patients != len(is_correct_P):
        msg = f"{patients} confidences with {len(is_correct_P)} outcomes; give one each a patient"
        raise AbstentionError(msg)
    _, group_P, size_G = np.unique(-confidence_P, return_inverse=True, return_counts=True)
    errors_G = np.bincount(group_P, weights=~is_correct_P)
    expected = np.cumsum(np.repeat(errors_G / size_G, size_G))
    answered = np.arange(1, patients + 1)
    wrong = int(errors_G.sum())
    least = np.maximum(answered - (patients - wrong), 0)
    return RiskCoverage(
        coverage=answered / patients,
        risk=expected / answered,
        aurc=float((expected / answered).mean()),
        optimal_aurc=float((least / answered).mean()),
    )
