"""Saying nothing where a classifier is not sure: calibration, thresholds, risk by coverage.

What is chosen is chosen on validation predictions and remembers whose they were; applying it to one
of these patients as a test is refused.

Shape letters: P patients, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from downstream.splits import LeakageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from downstream.folds import Part

    Floats = NDArray[np.float64]

_HOTTEST = 100.0


class AbstentionError(ValueError):
    """Predictions or a target that abstention cannot work with."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """A model's output on one part of a split.

    Attributes:
        patients: Ids.
        logits: float64[P, C]; log probabilities will do, as of an ensemble's mean.
        labels: int64[P] class indices.
        part: `train`, `validation` or `test`.

    Raises:
        AbstentionError: Arrays that do not fit, or nobody.
    """

    patients: tuple[str, ...]
    logits: Floats
    labels: NDArray[np.int64]
    part: Part

    def __post_init__(self) -> None:
        """Check shapes."""
        rows = {len(self.patients), len(self.logits), len(self.labels)}
        if rows == {0} or len(rows) != 1 or self.logits.ndim != 2 or self.logits.shape[1] < 2:
            msg = (
                f"{len(self.patients)} patients, logits {self.logits.shape}, {len(self.labels)} "
                "labels; give a row a patient, and two columns at least"
            )
            raise AbstentionError(msg)

    def confidence(self, temperature: float = 1.0) -> Floats:
        """Probability of the likeliest class [P]."""
        sure_P: Floats = np.exp(log_softmax(self.logits / temperature)).max(axis=1)
        return sure_P

    @property
    def is_correct(self) -> NDArray[np.bool_]:
        """Whether the likeliest class is the label [P]."""
        correct_P: NDArray[np.bool_] = self.logits.argmax(axis=1) == self.labels
        return correct_P


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """What logits are divided by.

    Attributes:
        value: Above 1 makes a model less sure; the likeliest class stays the same.
        patients: Whose predictions it was fitted on.
    """

    value: float
    patients: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """From which confidence on a prediction is given.

    Attributes:
        value: Least confidence; infinite if no threshold reaches the target.
        target: Accuracy that was asked for.
        accuracy: Of what is kept of the validation; NaN if nothing is.
        coverage: Share of the validation that is kept.
        temperature: At which confidences are taken.
        patients: Whose predictions it was chosen on.
    """

    value: float
    target: float
    accuracy: float
    coverage: float
    temperature: float
    patients: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class RiskCoverage:
    """Error among the surest predictions.

    Attributes:
        coverage: k / P for k = 1 .. P.
        risk: Expected share of errors among the k surest; ties are taken in any order.
        aurc: Mean risk over coverages; lower is better.
        optimal_aurc: The least possible with as many errors: all of them last.
    """

    coverage: Floats
    risk: Floats
    aurc: float
    optimal_aurc: float


def fit_temperature(validation: Predictions) -> Temperature:
    """The temperature with the least log loss (Guo et al. 2017), between 0.01 and 100.

    Raises:
        LeakageError: The predictions are not of a validation part.
    """
    from scipy.optimize import minimize_scalar

    _check_validation(validation, "a temperature")
    rows = np.arange(len(validation.labels))

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(validation.logits * np.exp(-log_temperature))
        return float(-scaled[rows, validation.labels].mean())

    bound = np.log(_HOTTEST)
    options = {"xatol": 1e-10}
    found = minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options=options)
    return Temperature(value=float(np.exp(found.x)), patients=frozenset(validation.patients))


def choose_threshold(
    validation: Predictions, *, target: float, temperature: Temperature | None = None
) -> Threshold:
    """The threshold that keeps most of the validation at a target accuracy (De Angeli et al. 2022).

    Patients of equal confidence are kept or left out together. The target holds on the validation;
    on new patients accuracy varies about it, the more so the fewer were kept.

    Args:
        validation: Predictions that decide.
        target: Least accuracy of what is kept, such as 0.97.
        temperature: Fitted on validation predictions too; None for 1. It changes which patients are
            surest only with more than two classes.

    Raises:
        LeakageError: The predictions are not of a validation part.
        AbstentionError: The target is not in 0..1.
    """
    _check_validation(validation, "a threshold")
    if not 0 < target <= 1:
        msg = f"target={target}; give the accuracy of what is kept, above 0 and at most 1"
        raise AbstentionError(msg)
    heat = 1.0 if temperature is None else temperature.value
    sure_P = validation.confidence(heat)
    levels = np.unique(sure_P)[::-1]
    kept = [sure_P >= level for level in levels]
    reached = [at for at, keep in enumerate(kept) if validation.is_correct[keep].mean() >= target]
    seen = frozenset(validation.patients) | (temperature.patients if temperature else frozenset())
    last = reached[-1] if reached else None
    return Threshold(
        value=np.inf if last is None else float(levels[last]),
        target=target,
        accuracy=np.nan if last is None else float(validation.is_correct[kept[last]].mean()),
        coverage=0.0 if last is None else float(kept[last].mean()),
        temperature=heat,
        patients=seen,
    )


def is_answered(predictions: Predictions, threshold: Threshold) -> NDArray[np.bool_]:
    """Which predictions are given [P]; the others are abstentions.

    Raises:
        LeakageError: A test patient is one of those the threshold was chosen on.
    """
    seen = sorted(set(predictions.patients) & threshold.patients)
    if predictions.part == "test" and seen:
        msg = (
            f"{len(seen)} test patients helped to choose the threshold, for example "
            f"{', '.join(seen[:5])}; choose it on validation patients alone"
        )
        raise LeakageError(msg)
    answered_P: NDArray[np.bool_] = predictions.confidence(threshold.temperature) >= threshold.value
    return answered_P


def risk_coverage(confidence_P: Floats, is_correct_P: NDArray[np.bool_]) -> RiskCoverage:
    """Error by share answered, from the surest on (Geifman and El-Yaniv 2017).

    Patients of equal confidence come in any order: the risk within them is the mean over orders, so
    that a constant confidence has the same risk at every coverage.

    Raises:
        AbstentionError: Nobody, or arrays of different lengths.
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


def log_softmax(logits_PC: Floats) -> Floats:
    """Log probabilities [P, C]."""
    shifted = logits_PC - logits_PC.max(axis=1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def _check_validation(predictions: Predictions, what: str) -> None:
    if predictions.part != "validation":
        msg = f"{what} from {predictions.part} predictions; choose it on validation patients"
        raise LeakageError(msg)
