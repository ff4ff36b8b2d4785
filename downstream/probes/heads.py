"""The heads of probes: a linear map or neighbours, and the choice of their one free number.

Shape letters: P rows of training, Q others, D width of the features, C classes or numbers, K
neighbours.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from downstream.probes.probe_spec import ProbeError

Floats = NDArray[np.float64]


INVERSE = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse penalties of the logistic regression (scikit-learn's C), strongest penalty first."""
STRENGTHS = (1e3, 1e2, 1e1, 1.0, 1e-1, 1e-2, 1e-3)
"""Penalties of the ridge regression, as shares of the number of training rows."""
NEIGHBOURS = (100, 50, 20, 10, 5, 3, 1)
"""Numbers of neighbours to try, the largest first."""
DEFAULTS = {"logistic": 1e-2, "ridge": 1.0, "knn": 5}
"""The free numbers of probes without validation rows."""
_ITERATIONS, _PLAIN_STEPS = 1000, 10_000
_LEAST = 1e-12
_BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A linear map of standardised features.

    Attributes:
        weight: weights [D, C].
        bias: biases [C]; minus infinity for a class that no training row has.
        is_class: whether outputs are the softmax over C, or numbers as they are.
    """

    weight: Floats
    bias: Floats
    is_class: bool

    def outputs(self, z_QD: Floats) -> Floats:
        """Return probabilities or numbers of the query rows [Q, C]."""
        output_QC: Floats = z_QD @ self.weight + self.bias
        if not self.is_class:
            return output_QC
        shifted = np.exp(output_QC - output_QC.max(axis=1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """A nearest-neighbour head: the training rows, and their votes.

    Attributes:
        bank: training rows [P, D], normalised to length 1.
        target: targets [P, C]: numbers; or votes, 1 / (share of the class) at the row's class, else
            0.
        neighbours: number K of neighbours, at most P.
        is_class: whether targets are votes. A vote is shared by all classes beside those of the
            neighbours, so that none of them is impossible.
    """

    bank: Floats
    target: Floats
    neighbours: int
    is_class: bool

    def outputs(self, z_QD: Floats) -> Floats:
        """Return probabilities or means of numbers of the query rows [Q, C]."""
        return self.voted(self.ranked(z_QD, self.neighbours))

    def ranked(self, z_QD: Floats, most: int) -> NDArray[np.int64]:
        """Return the rows [Q, most] of the nearest training rows by cosine, the nearest first."""
        nearest_QK = np.empty((len(z_QD), most), np.int64)
        for start in range(0, len(z_QD), _BLOCK):
            rows = slice(start, start + _BLOCK)
            apart = -(_unit_rows(z_QD[rows]) @ self.bank.T)
            near = np.argpartition(apart, most - 1, axis=1)[:, :most]
            order = np.argsort(np.take_along_axis(apart, near, axis=1), axis=1, kind="stable")
            nearest_QK[rows] = np.take_along_axis(near, order, axis=1)
        return nearest_QK

    def voted(self, rows_QK: NDArray[np.int64]) -> Floats:
        """Return the mean votes or numbers of the neighbours [Q, C]."""
        votes_QC: Floats = self.target[rows_QK].mean(axis=1)
        if not self.is_class:
            return votes_QC
        votes_QC = votes_QC * rows_QK.shape[1] + 1 / self.target.shape[1]
        return np.asarray(votes_QC / votes_QC.sum(axis=1, keepdims=True))


def fit_linear(
    z_PD: Floats, y: NDArray[Any], z_QD: Floats, y_Q: NDArray[Any], classes: int | None, seed: int
) -> tuple[Linear, float]:
    """Return the fitted linear head, and its inverse penalty (classes) or penalty (numbers)."""

    @functools.cache
    def fit(penalty: float) -> Linear:
        if classes is None:
            return _ridge(z_PD, y, penalty, seed)
        return fit_logistic(z_PD, y, classes, penalty, seed)

    options, penalty = (
        (STRENGTHS, DEFAULTS["ridge"]) if classes is None else (INVERSE, DEFAULTS["logistic"])
    )
    if len(z_QD) and (classes is None or len(np.unique(y)) > 1):
        # of penalties the loss falls and then rises, and the weak ones take by far the longest
        late = classes is not None
        penalty = best_option(
            options, lambda option: fit(option).outputs(z_QD), y_Q, classes, until_worse=late
        )
    return fit(penalty), penalty


def fit_nearest(
    z_PD: Floats, y: NDArray[Any], z_QD: Floats, y_Q: NDArray[Any], classes: int | None, seed: int
) -> tuple[Nearest, float]:
    """Return the nearest-neighbour head, and its number of neighbours."""
    options = [k for k in NEIGHBOURS if k <= len(z_PD)]
    target = _target_columns(y) if classes is None else _votes(y, classes)
    is_class, most = classes is not None, options[0]
    head = Nearest(bank=_unit_rows(z_PD), target=target, neighbours=most, is_class=is_class)
    neighbours = float(min(DEFAULTS["knn"], len(z_PD)))
    if len(z_QD):
        rows_QK = head.ranked(z_QD, most)
        neighbours = best_option(options, lambda k: head.voted(rows_QK[:, : int(k)]), y_Q, classes)
    return replace(head, neighbours=int(neighbours)), neighbours


def best_option(
    options: Sequence[float],
    outputs: Callable[[float], Floats],
    y_Q: NDArray[Any],
    classes: int | None,
    *,
    until_worse: bool = False,
) -> float:
    """Return the option with the least loss on validation rows, the first of equals.

    Args:
        options: options to try, in order.
        outputs: function from an option to the outputs of the validation rows.
        y_Q: targets of the validation rows.
        classes: number of classes; None for numbers.
        until_worse: whether to stop at the first option that is worse than the best.
    """
    best, least = options[0], np.inf
    for option in options:
        loss = _validation_loss(outputs(option), y_Q, classes)
        if loss > least and until_worse:
            break
        if loss < least:
            best, least = option, loss
    return best


def _validation_loss(output_QC: Floats, y_Q: NDArray[Any], classes: int | None) -> float:
    """Return the squared error, or the log loss in which all present classes weigh the same."""
    if classes is None:
        return float(((output_QC - _target_columns(y_Q)) ** 2).mean())
    label_Q = y_Q.astype(np.int64)
    weight_Q = 1 / np.bincount(label_Q, minlength=classes)[label_Q]
    likely_Q = np.maximum(output_QC[np.arange(len(label_Q)), label_Q], _LEAST)
    return float(-(weight_Q * np.log(likely_Q)).sum() / weight_Q.sum())


def fit_logistic(
    z_PD: Floats,
    y: NDArray[Any],
    classes: int,
    inverse: float,
    seed: int,
    *,
    steps: int = _ITERATIONS,
) -> Linear:
    """Fit a logistic regression in which all classes weigh the same, however rare.

    Args:
        z_PD: standardised features.
        y: class indices [P].
        classes: number of classes, including those without a row.
        inverse: inverse penalty.
        seed: seed of the solver.
        steps: most steps of the solver.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    weight, bias = np.zeros((z_PD.shape[1], classes)), np.full(classes, -np.inf)
    present = np.unique(y).astype(np.int64)
    bias[present] = 0.0
    if len(present) == 1:
        return Linear(weight=weight, bias=bias, is_class=True)
    model = LogisticRegression(
        C=inverse, max_iter=steps, class_weight="balanced", random_state=seed
    )
    with warnings.catch_warnings():
        # stopped after so many steps it is a probe all the same
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(z_PD, y)
    into = present[1:] if len(present) == 2 else present
    weight[:, into], bias[into] = model.coef_.T, model.intercept_
    return Linear(weight=weight, bias=bias, is_class=True)


def fit_plain_logistic(
    x_PD: Floats,
    y: NDArray[Any],
    _x_QD: Floats,
    _y_Q: NDArray[Any],
    classes: int | None,
    _seed: int,
    *,
    inverse: float,
) -> tuple[Linear, float]:
    """Return a logistic regression of fixed penalty, and its inverse penalty.

    Nothing is chosen. Classes weigh the same, however rare. Settings are those of Patho-Bench's
    `LinearProbeExperiment` with `BALANCED: True`.

    Raises:
        ProbeError: Numbers to predict.
    """
    if classes is None:
        msg = "logistic predicts classes or labels, not numbers; take linear or knn"
        raise ProbeError(msg)
    return fit_logistic(x_PD, y, classes, inverse, 0, steps=_PLAIN_STEPS), inverse


def _ridge(z_PD: Floats, y: NDArray[Any], strength: float, seed: int) -> Linear:
    """Return a ridge regression of numbers."""
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=strength * len(z_PD), random_state=seed).fit(z_PD, _target_columns(y))
    weight = np.atleast_2d(model.coef_).T
    return Linear(weight=weight, bias=np.atleast_1d(model.intercept_), is_class=False)


def _votes(y: NDArray[Any], classes: int) -> Floats:
    """Return the votes [P, C] of training rows: each class has the same sum, the mean is 1."""
    label_P = y.astype(np.int64)
    counts_C = np.bincount(label_P, minlength=classes)
    votes_PC = np.zeros((len(label_P), classes))
    present = np.count_nonzero(counts_C)
    votes_PC[np.arange(len(label_P)), label_P] = len(label_P) / (present * counts_C[label_P])
    return votes_PC


def _target_columns(y: NDArray[Any]) -> Floats:
    """Return numbers to predict as columns [P, C]."""
    columns: Floats = y.astype(np.float64).reshape(len(y), -1)
    return columns


def _unit_rows(z_QD: Floats) -> Floats:
    """Return the rows normalised to length 1; a row of zeros is unchanged."""
    length = np.linalg.norm(z_QD, axis=1, keepdims=True)
    unit_QD: Floats = z_QD / np.maximum(length, _LEAST)
    return unit_QD
