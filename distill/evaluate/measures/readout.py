"""Read-outs of frozen embeddings: ridge regression, a linear probe, nearest neighbours.

All are fitted on training tiles; strengths are chosen there too, on tiles of patients that the
fit did not use. The embedding that is read out is the trunk's, not a head's: a head may imitate
a teacher while the trunk, which users get, is poor.

Shape letters: N tiles, D embedding, E values of a target, S strengths.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distill.errors import DistillError
from distill.evaluate.measures.class_scores import balanced_accuracy
from distill.evaluate.measures.similarity import similarity_rows
from downstream.probes import INVERSE, fit_logistic

# Ridge penalties in units of a channel's mean variance times the number of tiles.
STRENGTHS = tuple(10.0**power for power in range(-6, 3))
INNER_SHARE = 0.25
CONSTANT = 1e-12

Array = npt.NDArray[np.floating]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def inner_split(group_N: Int64Array, seed: int = 0) -> BoolArray:
    """Choose the tiles that select a strength [N]: those of a quarter of the patients, rounded up.

    With a single patient, a quarter of the tiles is chosen.
    """
    random = np.random.default_rng((seed, len(group_N)))
    groups = np.unique(group_N)
    if len(groups) < 2:
        return random.permutation(len(group_N)) < INNER_SHARE * len(group_N)
    chosen = random.permutation(groups)[: math.ceil(INNER_SHARE * len(groups))]
    return np.isin(group_N, chosen)


# ---------------------------------------------------------------------- ridge


@dataclass(frozen=True, kw_only=True)
class Ridge:
    """A linear map with an intercept, `(x - mean) @ weight + target_mean`.

    Attributes:
        mean: mean of the embeddings of the fit [D].
        weight: matrix of the linear map [D, E].
        target_mean: mean of the targets of the fit [E].
        strength: strength of the penalty, in the unit of `STRENGTHS`.
    """

    mean: Float64Array
    weight: Float64Array
    target_mean: Float64Array
    strength: float

    def __call__(self, x_ND: Array) -> Float64Array:
        """Predict targets [N, E]."""
        centred_NE: Float64Array = (x_ND.astype(np.float64) - self.mean) @ self.weight
        return centred_NE + self.target_mean


class _RidgeFits:
    """Fits ridges of any strength from one eigendecomposition, over tiles or channels."""

    def __init__(self, x_ND: Array, target_NE: Array) -> None:
        x, target = x_ND.astype(np.float64), target_NE.astype(np.float64)
        self.mean, self.target_mean = x.mean(axis=0), target.mean(axis=0)
        x, target = x - self.mean, target - self.target_mean
        self._unit = float(np.square(x).sum()) / x.shape[1] or 1.0
        dual = len(x) < x.shape[1]
        eigenvalues, vectors = np.linalg.eigh(x @ x.T if dual else x.T @ x)
        self._eigenvalues = eigenvalues.clip(min=0)
        self._left = x.T @ vectors if dual else vectors
        self._right = vectors.T @ target if dual else vectors.T @ (x.T @ target)

    def at(self, strength: float, columns: slice = slice(None)) -> Ridge:
        """Return the ridge of one strength for some columns of the targets."""
        return Ridge(
            mean=self.mean,
            weight=self._left @ (self._right[:, columns] / self._shrink(strength)),
            target_mean=self.target_mean[columns],
            strength=strength,
        )

    def errors(self, x_ND: Array, target_NE: Array) -> Float64Array:
        """Return the squared error of each target on other tiles, by strength [S, E]."""
        projected = (x_ND.astype(np.float64) - self.mean) @ self._left
        centred_NE = target_NE.astype(np.float64) - self.target_mean
        guesses = (projected @ (self._right / self._shrink(strength)) for strength in STRENGTHS)
        return np.stack([np.square(guess - centred_NE).sum(axis=0) for guess in guesses])

    def _shrink(self, strength: float) -> Float64Array:
        return (self._eigenvalues + strength * self._unit)[:, None]


def ridge(x_ND: Array, target_NE: Array, strength: float) -> Ridge:
    """Fit the ridge that minimises the sum of squared errors plus `strength * unit * |weight|^2`.

    The unit is the embeddings' sum of squares around their mean per channel, so that a strength
    has the same effect for embeddings of any scale and number of tiles.
    """
    return _RidgeFits(x_ND, target_NE).at(strength)


def chosen_ridges(
    x_ND: Array, targets: Mapping[str, Array], group_N: Int64Array
) -> dict[str, Ridge]:
    """Fit a ridge to each target, with the strength of the least error on tiles of `inner_split`.

    Each target has its own strength; the ridge is then fitted on all tiles.

    Raises:
        DistillError: fewer than 4 tiles.
    """
    if len(x_ND) < 4:
        msg = f"{len(x_ND)} training tiles given; a read-out needs 4 or more: name more slides"
        raise DistillError(msg)
    all_NE = np.concatenate([target.astype(np.float32) for target in targets.values()], axis=1)
    ends = np.cumsum([target.shape[1] for target in targets.values()])
    inner = inner_split(group_N)
    errors_SE = _RidgeFits(x_ND[~inner], all_NE[~inner]).errors(x_ND[inner], all_NE[inner])
    whole, ridges = _RidgeFits(x_ND, all_NE), {}
    for (name, target), end in zip(targets.items(), ends.tolist(), strict=True):
        columns = slice(end - target.shape[1], end)
        best = int(np.argmin(errors_SE[:, columns].sum(axis=1)))
        ridges[name] = whole.at(STRENGTHS[best], columns)
    return ridges


# ---------------------------------------------------------------------- classes


def linear_probe(
    x_ND: Array, label_N: Int64Array, group_N: Int64Array, test_ND: Array
) -> tuple[Int64Array, float]:
    """Classify test tiles by logistic regression; return classes and the chosen inverse strength.

    Channels are standardised to mean 0 and variance 1; classes weigh the same. The inverse strength
    has the best balanced accuracy on tiles of `inner_split`; among equals the stronger penalty
    wins. It is 1 if these tiles or the others have one class only.

    Raises:
        DistillError: the training tiles are of one class.
    """
    if len(np.unique(label_N)) < 2:
        msg = f"all {len(label_N)} labelled training tiles are of one class; label others too"
        raise DistillError(msg)
    x, test = _standardised(x_ND, test_ND)
    inner = inner_split(group_N)
    best = 1.0
    if len(np.unique(label_N[~inner])) > 1 and len(np.unique(label_N[inner])) > 1:
        scores = [
            balanced_accuracy(
                label_N[inner], _classified(x[~inner], label_N[~inner], x[inner], inverse)
            )
            for inverse in INVERSE
        ]
        best = INVERSE[int(np.argmax(scores))]
    return _classified(x, label_N, test, best), best


def _standardised(x_ND: Array, test_ND: Array) -> tuple[Float64Array, Float64Array]:
    """Standardise channels of both sets of tiles to mean 0 and variance 1 of the training tiles."""
    x, test = x_ND.astype(np.float64), test_ND.astype(np.float64)
    mean, spread = x.mean(axis=0), x.std(axis=0)
    spread[spread < CONSTANT] = 1.0
    return (x - mean) / spread, (test - mean) / spread


def _classified(
    x_ND: Float64Array, label_N: Int64Array, test_ND: Float64Array, inverse: float
) -> Int64Array:
    """Classify test tiles by a logistic regression of one strength."""
    classes, index_N = np.unique(label_N, return_inverse=True)
    head = fit_logistic(x_ND, index_N, len(classes), inverse, seed=0)
    predicted_N: Int64Array = classes[head.outputs(test_ND).argmax(axis=1)]
    return predicted_N


def nearest(x_ND: Array, label_N: Int64Array, test_ND: Array, k: int) -> Int64Array:
    """Classify test tiles by the votes of their k nearest training tiles by cosine.

    Between classes with equal votes, the class of the larger summed similarity wins.
    """
    classes, index_N = np.unique(label_N, return_inverse=True)
    predicted_N = np.empty(len(test_ND), np.int64)
    count = min(k, len(x_ND))
    for rows, like in similarity_rows(test_ND, x_ND):
        first = np.argpartition(-like, count - 1, axis=1)[:, :count]
        votes = np.zeros((len(like), len(classes)))
        # A vote counts 1 and its similarity less than 1 / k, so similarity decides ties alone.
        vote_weights = 1 + (np.take_along_axis(like, first, axis=1) + 1) / (4 * count)
        for place in range(count):
            votes[np.arange(len(like)), index_N[first[:, place]]] += vote_weights[:, place]
        predicted_N[rows] = classes[votes.argmax(axis=1)]
    return predicted_N
