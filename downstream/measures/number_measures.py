"""Measures of labels that do not exclude each other, and of numbers, by scikit-learn and scipy.

Shape letters: P patients, C labels, R resamples.
"""

import numpy as np
from numpy.typing import NDArray

from downstream.measures import weighted
from downstream.measures.class_measures import Measure, UndefinedMetricError, auprc, auroc

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


_FEWEST = 2


def multilabel_auroc(label_PC: Labels, score_PC: Floats) -> float:
    """Return the unweighted mean over labels of the area under the ROC curve.

    Raises:
        UndefinedMetricError: All patients have a label, or no patient has it.
    """
    pairs = zip(label_PC.T, score_PC.T, strict=True)
    return float(np.mean([auroc(label, score) for label, score in pairs]))


def multilabel_auprc(label_PC: Labels, score_PC: Floats) -> float:
    """Return the unweighted mean over labels of the average precision.

    Raises:
        UndefinedMetricError: All patients have a label, or no patient has it.
    """
    pairs = zip(label_PC.T, score_PC.T, strict=True)
    return float(np.mean([auprc(label, score) for label, score in pairs]))


def mean_absolute_error(true_P: Floats, predicted_P: Floats) -> float:
    """Return the mean absolute error, in the target's unit; lower is better."""
    from sklearn.metrics import mean_absolute_error as error

    return float(error(true_P, predicted_P))


def r2(true_P: Floats, predicted_P: Floats) -> float:
    """Return the share of variance explained: 1 is perfect, 0 is as good as the patients' mean.

    Raises:
        UndefinedMetricError: All values are the same.
    """
    from sklearn.metrics import r2_score

    _check_varies("R2", true_P)
    return float(r2_score(true_P, predicted_P))


def pearson(true_P: Floats, predicted_P: Floats) -> float:
    """Return Pearson's linear correlation.

    Raises:
        UndefinedMetricError: All values, or all predictions, are the same.
    """
    from scipy.stats import pearsonr

    _check_varies("correlation", true_P)
    _check_varies("correlation", predicted_P)
    return float(pearsonr(true_P, predicted_P).statistic)


def multilabel_measures() -> list[Measure]:
    """Return the measures of several labels; truth is (labels [P, C],), prediction [P, C]."""
    return [
        Measure(name="auroc", value=multilabel_auroc, resampled=_multilabel_auroc),
        Measure(name="auprc", value=multilabel_auprc, resampled=_multilabel_auprc),
    ]


def multilabel_auroc_folds(
    w_RP: Floats, label_PC: Labels, group_P: Labels, score_PC: Floats
) -> Floats:
    """Return the means [R] over labels of `weighted.auroc_folds`; NaN where one is undefined."""
    pairs = zip(label_PC.T, score_PC.T, strict=True)
    each = [weighted.auroc_folds(w_RP, label, group_P, score) for label, score in pairs]
    mean_R: Floats = np.mean(each, axis=0)
    return mean_R


def regression_measures() -> list[Measure]:
    """Return the measures of a regression; truth is (numbers [P],), prediction [P]."""
    return [
        Measure(name="r2", value=r2, resampled=_r2),
        Measure(name="pearson", value=pearson, resampled=_pearson),
        Measure(
            name="mae", value=mean_absolute_error, resampled=_mean_error, higher_is_better=False
        ),
    ]


def _multilabel_auroc(w_RP: Floats, label_PC: Labels, score_PC: Floats) -> Floats:
    pairs = zip(label_PC.T, score_PC.T, strict=True)
    mean_R: Floats = np.mean([weighted.auroc(w_RP, *pair) for pair in pairs], axis=0)
    return mean_R


def _multilabel_auprc(w_RP: Floats, label_PC: Labels, score_PC: Floats) -> Floats:
    pairs = zip(label_PC.T, score_PC.T, strict=True)
    mean_R: Floats = np.mean([weighted.auprc(w_RP, *pair) for pair in pairs], axis=0)
    return mean_R


def _mean_error(w_RP: Floats, true_P: Floats, predicted_P: Floats) -> Floats:
    mean_R: Floats = w_RP @ np.abs(true_P - predicted_P) / w_RP.sum(axis=1)
    return mean_R


def _r2(w_RP: Floats, true_P: Floats, predicted_P: Floats) -> Floats:
    spread_R, _, _ = _moments(w_RP, true_P, true_P)
    error_R = w_RP @ (true_P - predicted_P) ** 2 / w_RP.sum(axis=1)
    return 1 - weighted.divide(error_R, spread_R)


def _pearson(w_RP: Floats, true_P: Floats, predicted_P: Floats) -> Floats:
    true_R, predicted_R, both_R = _moments(w_RP, true_P, predicted_P)
    return weighted.divide(both_R, np.sqrt(true_R * predicted_R))


def _moments(w_RP: Floats, one_P: Floats, other_P: Floats) -> tuple[Floats, Floats, Floats]:
    """Return both variances and the covariance of each resample [R]; 0 if only rounding."""
    share_RP = w_RP / w_RP.sum(axis=1, keepdims=True)
    # about the whole sample's means first: a plain sum of squares cancels where these are large
    one_P, other_P = one_P - one_P.mean(), other_P - other_P.mean()
    moments = []
    for a_P, b_P in ((one_P, one_P), (other_P, other_P), (one_P, other_P)):
        moment_R = share_RP @ (a_P * b_P) - (share_RP @ a_P) * (share_RP @ b_P)
        noise = 1e-13 * np.sqrt((a_P**2).max() * (b_P**2).max())
        moments.append(np.where(np.abs(moment_R) > noise, moment_R, 0.0))
    return moments[0], moments[1], moments[2]


def _check_varies(name: str, true_P: Floats) -> None:
    """Raise UndefinedMetricError if all numbers are the same."""
    if len(true_P) < _FEWEST or np.ptp(true_P) == 0:
        msg = f"{name}: {len(true_P)} patients with values that are all the same"
        raise UndefinedMetricError(msg)
