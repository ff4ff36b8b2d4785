"""Ordinal logistic regression of standardised features, for classes in an order.

Shape letters: P rows of training, Q others, D width of the features, C classes, T = C - 1
thresholds.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from downstream.probes.heads import DEFAULTS, INVERSE, best_option

Floats = NDArray[np.float64]

_LEAST_GAP = 1e-6


@dataclass(frozen=True, kw_only=True)
class Ordinal:
    """One score of standardised features, cut into classes.

    Attributes:
        weight: weights [D].
        thresholds: cuts of the score [T], in order: P(y <= k) = sigmoid(threshold_k - score).
    """

    weight: Floats
    thresholds: Floats

    def outputs(self, z_QD: Floats) -> Floats:
        """Return the probabilities of the classes [Q, C]."""
        return _probabilities(z_QD @ self.weight, self.thresholds)


def fit_ordinal(
    z_PD: Floats, y: NDArray[Any], z_QD: Floats, y_Q: NDArray[Any], classes: int, _seed: int
) -> tuple[Ordinal, float]:
    """Return the fitted head, and its inverse penalty, chosen on validation rows as in `linear`."""
    penalty = DEFAULTS["logistic"]
    if len(z_QD):
        penalty = best_option(
            INVERSE,
            lambda option: fit_proportional_odds(z_PD, y, classes, option).outputs(z_QD),
            y_Q,
            classes,
            until_worse=True,
        )
    return fit_proportional_odds(z_PD, y, classes, penalty), penalty


def fit_proportional_odds(z_PD: Floats, y: NDArray[Any], classes: int, inverse: float) -> Ordinal:
    """Fit proportional odds (McCullagh 1980) with a ridge penalty; all classes weigh the same.

    The sum of -log P(y) over rows, weighted to equal sums of the classes and to P in all, plus
    |weight|^2 / (2 inverse), as scikit-learn's logistic regression. Thresholds are not penalised.

    Args:
        z_PD: standardised features.
        y: class indices [P].
        classes: number of classes C.
        inverse: inverse penalty.
    """
    from scipy.optimize import minimize

    label_P = y.astype(np.int64)
    counts_C = np.bincount(label_P, minlength=classes)
    weight_P = len(label_P) / (np.count_nonzero(counts_C) * counts_C[label_P])
    width = z_PD.shape[1]

    def loss(point: Floats) -> tuple[float, Floats]:
        coefficients, steps = point[:width], point[width:]
        thresholds = _thresholds(steps)
        score_P = z_PD @ coefficients
        padded = np.concatenate([[-np.inf], thresholds, [np.inf]])
        below_P = _sigmoid(padded[label_P] - score_P)
        upto_P = _sigmoid(padded[label_P + 1] - score_P)
        likely_P = np.maximum(upto_P - below_P, 1e-300)
        slope_below, slope_upto = below_P * (1 - below_P), upto_P * (1 - upto_P)
        by_score_P = weight_P * (slope_upto - slope_below) / likely_P
        by_threshold = np.zeros(classes + 1)
        np.add.at(by_threshold, label_P + 1, -weight_P * slope_upto / likely_P)
        np.add.at(by_threshold, label_P, weight_P * slope_below / likely_P)
        # a threshold is the first step plus the exponentials of those up to it
        tail_T = by_threshold[1:-1][::-1].cumsum()[::-1]
        by_step = np.append(tail_T[:1], tail_T[1:] * np.exp(steps[1:]))
        total = -(weight_P * np.log(likely_P)).sum() + (coefficients**2).sum() / (2 * inverse)
        return total, np.append(z_PD.T @ by_score_P + coefficients / inverse, by_step)

    share_T = np.arange(1, classes) / classes
    start_T = np.log(share_T / (1 - share_T))
    start = np.concatenate([np.zeros(width), start_T[:1], np.log(np.diff(start_T))])
    options = {"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-8}
    optimum = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    return Ordinal(weight=optimum.x[:width], thresholds=_thresholds(optimum.x[width:]))


def _thresholds(steps: Floats) -> Floats:
    """Return ordered thresholds [T] from a first one and logarithms of gaps."""
    gaps = np.exp(steps[1:]) + _LEAST_GAP
    ordered: Floats = np.append(steps[:1], gaps).cumsum()
    return ordered


def _probabilities(score_Q: Floats, thresholds: Floats) -> Floats:
    """Return the probabilities of the classes [Q, C]."""
    upto_QT = _sigmoid(thresholds - score_Q[:, None])
    edges = np.pad(upto_QT, ((0, 0), (1, 1)), constant_values=((0, 0), (0, 1)))
    return np.diff(edges, axis=1)


def _sigmoid(x: Floats) -> Floats:
    """Return 1 / (1 + exp(-x)), also for infinities."""
    from scipy.special import expit

    return np.asarray(expit(x), dtype=np.float64)
