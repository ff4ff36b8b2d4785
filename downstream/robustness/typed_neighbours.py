"""Nearest neighbours by what they share with a sample: its class, its site, both or neither.

A neighbour of the same class from another site (SO) speaks for biology, one of another class from
the same site (OS) for the site. Samples of the same patient are never neighbours: they share
tissue, stain and scanner.

Shape letters: N samples, C classes, K neighbours, M nearest neighbours of a type.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

#: Numbers of neighbours that are tried, as in PathoROB, up to the number of samples.
NEIGHBOURS = (1, 3, 5, 7, 9, 11, *range(21, 101, 10))
#: Nearest neighbours of each type in a margin of CRoMa.
MARGIN_NEIGHBOURS = 5
_ANY_SCALE = 0.2
"""MaRI's temperature where half of the neighbours are at distance 0; it changes nothing there."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the first k neighbours of each sample say.

    Attributes:
        k: number of neighbours, that of the best vote on the class.
        tau: temperature of MaRI, the median distance of SO and OS neighbours.
        counts: numbers of SO and OS neighbours [N, 2].
        weights: their sums of exp(-distance / tau) [N, 2].
        class_vote: class that most neighbours have [N]; -1 without a neighbour.
        site_vote: site that most neighbours have [N].
    """

    k: int
    tau: float
    counts: Floats
    weights: Floats
    class_vote: Codes
    site_vote: Codes


def cosine_distances(x_ND: NDArray[Any], patient_N: Codes) -> Floats:
    """Return cosine distances [N, N]; infinite between samples of the same patient.

    >>> cosine_distances(np.eye(2), np.array([0, 1])).tolist()
    [[inf, 1.0], [1.0, inf]]
    """
    unit_ND = unit_rows(x_ND)
    distance_NN = np.clip(1 - unit_ND @ unit_ND.T, 0, 2)
    distance_NN[patient_N[:, None] == patient_N] = np.inf
    return distance_NN


def unit_rows(x_ND: NDArray[Any]) -> Floats:
    """Return the rows with length 1; a row of zeros stays one."""
    x = np.asarray(x_ND, dtype=np.float64)
    return np.asarray(x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-12))


def neighbour_evidence(distance_NN: Floats, label_N: Codes, site_N: Codes) -> Evidence:
    """Return the evidence of the first k neighbours, for the k whose vote tells the class best.

    Args:
        distance_NN: distances from `cosine_distances`.
        label_N: class of each sample.
        site_N: site of each sample.

    Source:
        PathoROB (arXiv 2507.17845) for RI and the choice of k; CRoMa's package (arXiv 2607.25497)
        for MaRI and its temperature.
    """
    candidates = [k for k in NEIGHBOURS if k < len(label_N)]
    most = candidates[-1]
    order_NK, near_NK = _nearest(distance_NN, most)
    is_there_NK = np.isfinite(near_NK)
    votes_NKC = _vote_counts(label_N[order_NK], is_there_NK)
    scores = [_balanced_accuracy(label_N, _winner(votes_NKC[:, k - 1])) for k in candidates]
    k = candidates[int(np.argmax(scores))]  # of equals the fewest neighbours
    first = np.s_[:, :k]
    same_class = label_N[order_NK[first]] == label_N[:, None]
    same_site = site_N[order_NK[first]] == site_N[:, None]
    so_NK = is_there_NK[first] & same_class & ~same_site
    os_NK = is_there_NK[first] & ~same_class & same_site
    typed = near_NK[first][so_NK | os_NK]
    tau = float(np.median(typed)) if len(typed) else _ANY_SCALE
    tau = tau if tau > 0 else _ANY_SCALE
    weight_NK = np.exp(-near_NK[first] / tau)
    site_votes_NC = _vote_counts(site_N[order_NK[first]], is_there_NK[first])[:, -1]
    return Evidence(
        k=k,
        tau=tau,
        counts=np.stack([so_NK.sum(axis=1), os_NK.sum(axis=1)], axis=1).astype(np.float64),
        weights=np.stack([(weight_NK * part).sum(axis=1) for part in (so_NK, os_NK)], axis=1),
        class_vote=_winner(votes_NKC[:, k - 1]),
        site_vote=_winner(site_votes_NC),
    )


def margins(distance_NN: Floats, label_N: Codes, site_N: Codes) -> Floats:
    """Return CRoMa's margin of each sample [N], in -1..1; NaN where it is undefined.

    The margin is `(d_OS - d_SO) / (d_OS + d_SO)`, d the mean cosine distance to the 5 nearest
    samples of the type: above 0 the biological match is nearer than the impostor of the same site.
    It is undefined for a sample with fewer than 5 of a type, which depends on class and site of the
    samples and not on the features.

    Source:
        Grisi et al. 2026, arXiv 2607.25497.
    """
    same_class = label_N[:, None] == label_N
    same_site = site_N[:, None] == site_N
    d_so = _mean_nearest(distance_NN, same_class & ~same_site)
    d_os = _mean_nearest(distance_NN, ~same_class & same_site)
    total = d_so + d_os
    is_defined = np.isfinite(total) & (total > 0)
    margin_N = np.full(len(label_N), np.nan)
    margin_N[is_defined] = (d_os[is_defined] - d_so[is_defined]) / total[is_defined]
    return margin_N


def has_margin(label_N: Codes, site_N: Codes, patient_N: Codes) -> NDArray[np.bool_]:
    """Return whether each sample has 5 others of each type, and with them a margin [N]."""
    is_other = patient_N[:, None] != patient_N
    same_class = label_N[:, None] == label_N
    same_site = site_N[:, None] == site_N
    so_N = (is_other & same_class & ~same_site).sum(axis=1)
    os_N = (is_other & ~same_class & same_site).sum(axis=1)
    return np.asarray(np.minimum(so_N, os_N) >= MARGIN_NEIGHBOURS)


def share_of_matches(label_N: Codes, site_N: Codes, patient_N: Codes) -> float:
    """Return the share of SO among all SO and OS pairs: the RI of features that know nothing.

    It is 0.5 for as many samples of each of two classes at each of two sites.

    >>> share_of_matches(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]), np.arange(4))
    0.5
    """
    is_other = patient_N[:, None] != patient_N
    same_class, same_site = label_N[:, None] == label_N, site_N[:, None] == site_N
    so = float((is_other & same_class & ~same_site).sum())
    os = float((is_other & ~same_class & same_site).sum())
    return so / (so + os) if so + os else float("nan")


def _mean_nearest(distance_NN: Floats, is_type_NN: NDArray[np.bool_]) -> Floats:
    """Return the mean distance to the nearest samples of a type [N]; infinite for too few."""
    if len(distance_NN) <= MARGIN_NEIGHBOURS:
        return np.full(len(distance_NN), np.inf)
    typed_NN = np.where(is_type_NN, distance_NN, np.inf)
    nearest_NM = np.partition(typed_NN, MARGIN_NEIGHBOURS - 1, axis=1)[:, :MARGIN_NEIGHBOURS]
    return np.asarray(nearest_NM.mean(axis=1))


def _nearest(distance_NN: Floats, most: int) -> tuple[Codes, Floats]:
    """Return the nearest samples [N, K] and their distances, the nearest first."""
    near_NK = np.argpartition(distance_NN, most - 1, axis=1)[:, :most]
    distance_NK = np.take_along_axis(distance_NN, near_NK, axis=1)
    order = np.argsort(distance_NK, axis=1, kind="stable")
    return np.take_along_axis(near_NK, order, axis=1), np.take_along_axis(
        distance_NK, order, axis=1
    )


def _vote_counts(code_NK: Codes, is_there_NK: NDArray[np.bool_]) -> Floats:
    """Return how many of the first 1, 2, ... neighbours have each code [N, K, C]."""
    one_hot = np.eye(int(code_NK.max()) + 1, dtype=np.float32)[code_NK]
    return np.cumsum(one_hot * is_there_NK[:, :, None], axis=1)


def _winner(votes_NC: Floats) -> Codes:
    """Return the code with most votes [N], of equals the first; -1 without a vote."""
    return np.where(votes_NC.max(axis=1) > 0, votes_NC.argmax(axis=1), -1)


def _balanced_accuracy(label_N: Codes, vote_N: Codes) -> float:
    """Return the mean recall over classes, of samples that have a neighbour."""
    voted = vote_N >= 0
    hit, labels = (vote_N == label_N)[voted], label_N[voted]
    recalls = [hit[labels == label].mean() for label in np.unique(labels)]
    return float(np.mean(recalls)) if recalls else 0.0
