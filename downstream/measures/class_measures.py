"""Measures of classification, by scikit-learn; what a measure is.

Each measure has a second form for many resamples at once: weights in, one value a resample out,
NaN where it is undefined. The two are equal on repeated patients (tested), and the second is what
makes a bootstrap of thousands of resamples take milliseconds.

Shape letters: P patients, C classes, R resamples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from downstream.measures import weighted

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


Outcome = Literal["binary", "multiclass"]


class UndefinedMetricError(ValueError):
    """An error for a measure without a value on some patients: one class, or no pair."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A measure of the quality of predictions.

    Attributes:
        name: short name, for tables.
        value: function of (*truth, prediction) that returns one number, or raises
            `UndefinedMetricError`.
        resampled: the same of (weights [R, P], *truth, prediction) -> [R], NaN where undefined;
            None where only `value` exists.
        higher_is_better: direction.
        of_decisions: whether it measures decisions by a threshold, and not scores.
    """

    name: str
    value: Callable[..., float]
    resampled: Callable[..., Floats] | None = None
    higher_is_better: bool = True
    of_decisions: bool = False


def auroc(label_P: Labels, score: Floats) -> float:
    """Return the area under the ROC curve; tied scores count one half.

    Args:
        label_P: class indices.
        score: [P] of class 1, or [P, C] probabilities: the unweighted mean of the C
            one-against-rest areas.

    Returns:
        0.5 for chance, 1 for a perfect ranking.

    Raises:
        UndefinedMetricError: A class without patients.
    """
    from sklearn.metrics import roc_auc_score

    _check_classes("AUROC", label_P, score)
    return float(np.mean([roc_auc_score(is_c, s) for is_c, s in one_against_rest(label_P, score)]))


def auprc(label_P: Labels, score: Floats) -> float:
    """Return the average precision; of C classes the unweighted mean of one against the rest.

    Chance is the share of the class, not one half.

    Raises:
        UndefinedMetricError: A class without patients.
    """
    from sklearn.metrics import average_precision_score as precision

    _check_classes("AUPRC", label_P, score)
    return float(np.mean([precision(is_c, s) for is_c, s in one_against_rest(label_P, score)]))


def balanced_accuracy(label_P: Labels, score: Floats, *, threshold: float = 0.5) -> float:
    """Return the mean over classes of the recall.

    Args:
        label_P: class indices.
        score: [P] of class 1, or [P, C], of which the largest is predicted.
        threshold: the score from which on class 1 is predicted; chosen on validation patients,
            or 0.5.

    Raises:
        UndefinedMetricError: A class without patients.
    """
    from sklearn.metrics import balanced_accuracy_score

    _check_classes("balanced accuracy", label_P, score)
    return float(balanced_accuracy_score(label_P, predicted(score, threshold)))


def f1(label_P: Labels, score: Floats, *, threshold: float = 0.5) -> float:
    """Return the F1 of class 1, or with [P, C] scores its mean over classes; 0 / 0 is 0."""
    from sklearn.metrics import f1_score

    labels = range(classes_of(score)) if score.ndim > 1 else [1]
    predicted_P = predicted(score, threshold)
    return float(f1_score(label_P, predicted_P, labels=labels, average="macro", zero_division=0))


def kappa(
    label_P: Labels, score: Floats, *, threshold: float = 0.5, quadratic: bool = False
) -> float:
    """Return Cohen's kappa; `quadratic` for grades, where a far miss is worse than a near one.

    Raises:
        UndefinedMetricError: Labels and predictions are all of one class.
    """
    from sklearn.metrics import cohen_kappa_score

    predicted_P = predicted(score, threshold)
    if len(np.unique(np.concatenate([label_P, predicted_P]))) == 1:
        msg = f"kappa: all {len(label_P)} labels and predictions are of one class"
        raise UndefinedMetricError(msg)
    classes = list(range(classes_of(score)))
    weights = "quadratic" if quadratic else None
    return float(cohen_kappa_score(label_P, predicted_P, labels=classes, weights=weights))


def brier(label_P: Labels, score: Floats) -> float:
    """Return the mean squared error of probabilities: in 0..1, of C classes summed in 0..2."""
    from sklearn.metrics import brier_score_loss

    labels = list(range(classes_of(score)))
    return float(brier_score_loss(label_P, score, labels=labels, scale_by_half=score.ndim == 1))


def ece(label_P: Labels, score: Floats) -> float:
    """Return the expected calibration error of the predicted class: 15 bins of equal width.

    Mean over patients of |share correct - mean confidence| of their bin (Guo et al. 2017);
    confidence is the probability of the likeliest class, so a binary one is in 0.5..1.
    """
    ones = np.ones((1, len(label_P)))
    return float(weighted.ece(ones, label_P, score)[0])


def predicted(score: Floats, threshold: float = 0.5) -> Labels:
    """Return the predicted classes: 1 from the threshold on, or the largest score of [P, C]."""
    class_P = score.argmax(axis=1) if score.ndim > 1 else score >= threshold
    return class_P.astype(np.int64)


def classes_of(score: Floats) -> int:
    """Return the number of classes: C of [P, C] scores, 2 of [P]."""
    return score.shape[1] if score.ndim > 1 else 2


def one_against_rest(label_P: Labels, score: Floats) -> list[tuple[NDArray[np.bool_], Floats]]:
    """Return pairs (is the patient of the class, its score): of class 1, or of each class."""
    if score.ndim == 1:
        return [(label_P == 1, score)]
    return [(label_P == c, score[:, c]) for c in range(score.shape[1])]


def _check_classes(name: str, label_P: Labels, score: Floats) -> None:
    """Raise UndefinedMetricError if a class has no patients."""
    present, classes = len(np.unique(label_P)), classes_of(score)
    if present < classes:
        msg = f"{name} needs all {classes} classes; these {len(label_P)} patients are of {present}"
        raise UndefinedMetricError(msg)


def classification_measures(outcome: Outcome, *, threshold: float = 0.5) -> list[Measure]:
    """Return the measures of a classifier; truth is (label,), prediction its scores.

    Args:
        outcome: `binary` ([P] scores) or `multiclass` ([P, C]).
        threshold: threshold of class 1, chosen on validation patients.
    """
    cut = {} if outcome == "multiclass" else {"threshold": threshold}
    measures = [
        Measure(name="auroc", value=auroc, resampled=weighted.auroc),
        Measure(name="auprc", value=auprc, resampled=weighted.auprc),
    ]
    decisions: list[tuple[str, Any, Any, dict[str, Any]]] = [
        ("balanced_accuracy", balanced_accuracy, weighted.balanced_accuracy, cut),
        ("f1", f1, weighted.f1, cut),
        ("kappa", kappa, weighted.kappa, cut),
        ("kappa_quadratic", kappa, weighted.kappa, {**cut, "quadratic": True}),
    ]
    measures += [
        Measure(
            name=name,
            value=partial(measure, **options),
            resampled=partial(resampled, **options),
            of_decisions=True,
        )
        for name, measure, resampled, options in decisions
    ]
    return [
        *measures,
        Measure(name="ece", value=ece, resampled=weighted.ece, higher_is_better=False),
        Measure(name="brier", value=brier, resampled=weighted.brier, higher_is_better=False),
    ]


def class_distance(label_P: Labels, score: Floats) -> float:
    """Return the mean number of steps between predicted class and label, of ordered classes.

    Args:
        label_P: class indices, in the order of the classes.
        score: [P, C] probabilities; the likeliest class is predicted.
    """
    return float(np.abs(predicted(score) - label_P).mean())


def class_distance_measure() -> Measure:
    """Return the mean absolute error of ordered classes, in steps of the order."""
    return Measure(
        name="class_distance",
        value=class_distance,
        resampled=weighted.class_distance,
        higher_is_better=False,
        of_decisions=True,
    )


def measure_of(
    name: str, resampled: Callable[..., Floats], *, higher_is_better: bool = True
) -> Measure:
    """Return a measure defined by its form for resamples; its value counts each row once."""
    estimate = partial(_estimate_on_all, name, resampled)
    return Measure(
        name=name, value=estimate, resampled=resampled, higher_is_better=higher_is_better
    )


def _estimate_on_all(name: str, resampled: Callable[..., Floats], *arrays: NDArray[Any]) -> float:
    """Return a measure's value where each row counts once.

    Raises:
        UndefinedMetricError: The measure is undefined on these rows.
    """
    estimate = float(resampled(np.ones((1, len(arrays[-1]))), *arrays)[0])
    if not np.isfinite(estimate):
        msg = f"{name} is undefined on {len(arrays[-1])} predictions: nobody to compare on one side"
        raise UndefinedMetricError(msg)
    return estimate
