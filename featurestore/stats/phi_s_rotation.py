"""PHI-S: one rotation and one scale after which all channels of a teacher have equal variance.

Ranzinger et al. 2024, "PHI-S: Distribution Balancing for Label-Free Multi-Teacher Distillation"
(arXiv 2410.01680). Unlike a z-score it keeps all ratios of distances; unlike whitening it blows up
no direction, so features of low rank are welcome. Everything is exact and inverted by a transpose.

Shape letters: N tiles, D embedding.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurestore.errors import LakeError

# Raised whenever the same covariance would give another rotation.
FORMULA = 1

# Of the largest entry: an eigenvector's sign is taken from the first one that is nearly as large,
# so that it does not hang on the last digit where two are equal.
NEARLY = 0.9

Float64Array = npt.NDArray[np.float64]
SignArray = npt.NDArray[np.int8]


@dataclass(frozen=True, kw_only=True)
class PhiS:
    """The transform `y = scale * rotation @ (x - mean)` of features x, and its inverse.

    Attributes:
        mean: [D].
        rotation: [D, D], orthogonal; row i makes channel i of y.
        scale: alpha, 1 / sqrt(mean variance of the channels of x).
    """

    mean: Float64Array
    rotation: Float64Array
    scale: float

    def __call__(self, features_ND: npt.NDArray[np.floating]) -> Float64Array:
        """Return targets [N, D] of raw features [N, D]; each channel has variance 1 where fitted.

        Raises:
            LakeError: the widths differ.
        """
        centred_ND = self._checked(features_ND) - self.mean
        return self.scale * (centred_ND @ self.rotation.T)

    def inverse(self, targets_ND: npt.NDArray[np.floating]) -> Float64Array:
        """Return raw features [N, D] of targets [N, D].

        Raises:
            LakeError: the widths differ.
        """
        return self._checked(targets_ND) @ self.rotation / self.scale + self.mean

    def _checked(self, values_ND: npt.NDArray[np.floating]) -> Float64Array:
        if values_ND.shape[-1] != len(self.mean):
            msg = f"features have {values_ND.shape[-1]} channels, the rotation {len(self.mean)}"
            raise LakeError(msg)
        return values_ND.astype(np.float64)


def phi_s(mean: Float64Array, covariance: Float64Array) -> PhiS:
    """Return the PHI-S transform of features with this mean [D] and covariance [D, D].

    `covariance = U diag(l) U^T`; the rotation is `H U^T` with H of `mixing(l)`, the scale
    `1 / sqrt(mean l)`. The covariance may be of any rank but 0: then the variance of all channels
    of the target, `scale^2 diag(H diag(l) H^T)`, is 1 all the same. Where eigenvalues are equal any
    basis of their space serves; which one it is may differ between machines, so keep the result.

    Raises:
        LakeError: the covariance is 0.
    """
    variances_D, vectors_DD = np.linalg.eigh(covariance)
    variances_D = variances_D.clip(min=0)  # of low rank: rounding leaves some at -1e-17
    level = float(variances_D.mean())
    if not level > 0:
        msg = (
            "all tiles have the same features, so no scale makes their variance 1; name more "
            "slides, or look at the teacher"
        )
        raise LakeError(msg)
    rotation = mixing(variances_D) @ (vectors_DD * _signs(vectors_DD)).T
    return PhiS(mean=mean, rotation=rotation, scale=1 / math.sqrt(level))


def _signs(vectors_DD: Float64Array) -> Float64Array:
    """Return signs [D] by which the first of the largest entries of each column is positive."""
    size_DD = np.abs(vectors_DD)
    first_D = np.argmax(size_DD >= NEARLY * size_DD.max(axis=0), axis=0)
    signs_D: Float64Array = np.sign(vectors_DD[first_D, np.arange(len(first_D))])
    return signs_D


def mixing(variances_D: Float64Array) -> Float64Array:
    """Return an orthogonal H [D, D] for which all of `diag(H diag(variances) H^T)` are equal.

    A Hadamard matrix where one can be constructed, as in RADIO, whatever the variances. Else there
    is an H for these variances (Schur-Horn theorem): Hartley's transform, which mixes all
    directions into all channels, with rotations of two channels each that equalise the rest.
    RADIO uses a random orthogonal matrix there, after which the variances are only nearly equal.
    """
    signs_DD = hadamard(len(variances_D))
    if signs_DD is not None:
        return signs_DD / math.sqrt(len(variances_D))
    return _equalised_basis(_hartley(len(variances_D)), variances_D)


def hadamard(order: int) -> SignArray | None:
    """Return a square matrix of 1 and -1 with orthogonal rows, or None if none is known here.

    Sylvester's matrix of the largest possible power of two, times a Paley matrix (1933) of the rest
    from a prime. This covers all usual embeddings (384, 768, 1152, 1280, ...), but no orders
    that are not 1, 2 or a multiple of 4, where no such matrix exists, and not a few like 92.

    >>> hadamard(4).tolist()
    [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    >>> [order for order in (12, 28, 36, 92, 100, 1280) if hadamard(order) is None]
    [92, 100]
    """
    doubled = order & -order
    while doubled:
        block = _paley(order // doubled)
        if block is not None:
            return np.kron(_sylvester(doubled), block)
        doubled //= 2
    return None


def _sylvester(order: int) -> SignArray:
    matrix = np.ones((1, 1), np.int8)
    while len(matrix) < order:
        matrix = np.kron(np.array([[1, 1], [1, -1]], np.int8), matrix)
    return matrix


def _paley(order: int) -> SignArray | None:
    """Return Paley's first matrix for a prime q = order - 1, or his second for order / 2 - 1."""
    if order == 1:
        return np.ones((1, 1), np.int8)
    if order % 4 == 0 and _is_prime(order - 1):
        return np.eye(order, dtype=np.int8) + _bordered(order - 1, -1)
    if order % 4 == 0 and (order // 2 - 1) % 4 == 1 and _is_prime(order // 2 - 1):
        one = np.eye(order // 2, dtype=np.int8)
        twice = np.array([[1, 1], [1, -1]], np.int8), np.array([[1, -1], [-1, -1]], np.int8)
        return np.kron(_bordered(order // 2 - 1, 1), twice[0]) + np.kron(one, twice[1])
    return None


def _bordered(prime: int, left: int) -> SignArray:
    """Return the squares of the field of a prime q, with a border [q + 1, q + 1].

    The diagonal is 0. Inside is 1 where row - column is a square and -1 where not; above 1, on the
    left `left`.
    """
    at = np.arange(prime)
    is_square = np.full(prime, -1, np.int8)
    is_square[at * at % prime] = 1
    is_square[0] = 0
    matrix = np.zeros((prime + 1, prime + 1), np.int8)
    matrix[0, 1:], matrix[1:, 0] = 1, left
    matrix[1:, 1:] = is_square[(at[:, None] - at) % prime]
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % i for i in range(2, math.isqrt(number) + 1))


def _hartley(order: int) -> Float64Array:
    """Return the orthogonal matrix [D, D] of Hartley's transform, (cos + sin) / sqrt(D)."""
    at = np.arange(order)
    angle = 2 * np.pi / order * (np.outer(at, at) % order)
    matrix: Float64Array = (np.cos(angle) + np.sin(angle)) / math.sqrt(order)
    return matrix


def _equalised_basis(basis_DD: Float64Array, variances_D: Float64Array) -> Float64Array:
    """Return the basis after rotations of two rows each that equalise all variances.

    At each step the channels of least and most variance are rotated until one of them has the mean
    (Bendel and Mickey 1978; Davies and Higham 2000, "Numerically stable generation of correlation
    matrices and their factors"), so that all have it after D - 1 steps.
    """
    level = variances_D.mean()
    rotated_DD = (basis_DD * variances_D) @ basis_DD.T
    joined_D2D = np.concatenate([rotated_DD, basis_DD], axis=1)
    size = len(variances_D)
    for _ in range(size - 1):
        off_D = joined_D2D.diagonal() - level
        pair = [int(off_D.argmin()), int(off_D.argmax())]
        if not off_D[pair[0]] < 0 < off_D[pair[1]]:
            break
        turn = _zeroing_rotation(off_D[pair[0]], off_D[pair[1]], joined_D2D[pair[0], pair[1]])
        joined_D2D[pair] = turn @ joined_D2D[pair]
        joined_D2D[:, pair] = joined_D2D[:, pair] @ turn.T
    return joined_D2D[:, size:].copy()


def _zeroing_rotation(low: float, high: float, shared: float) -> Float64Array:
    """Return the rotation [2, 2] that sets a symmetric matrix's first diagonal entry to 0.

    Args:
        low: first diagonal entry, below 0.
        high: second diagonal entry, above 0.
        shared: off-diagonal entry.
    """
    root = math.sqrt(shared * shared - low * high)
    tangent = -low / (shared + math.copysign(root, shared))
    cosine = 1 / math.hypot(1, tangent)
    return np.array([[cosine, tangent * cosine], [-tangent * cosine, cosine]])
