"""The clustering score: do clusters follow the classes or the sites?

Shape letters: N samples, T clusterings, R resamples, P patients, K clusters, C codes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from downstream.robustness.patient_bootstrap import BootstrapEstimate
from downstream.robustness.typed_neighbours import unit_rows

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

MOST_CLUSTERS = 30
#: Most samples that are clustered; the first of them, which are drawn from all cells in turn.
MOST_CLUSTERED = 1000
_STARTS = 5
_SEED = 1337


def clusterings(
    x_ND: NDArray[Any],
    *,
    trials: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> tuple[int, Codes]:
    """Return the number of clusters, and the cluster of each sample in each clustering [T, N].

    k-means on vectors of length 1; of 2 to 30 clusters those with the best silhouette by cosine.

    Args:
        x_ND: features, at least 4 rows.
        trials: clusterings with different random numbers.
        seed: seed of the clusterings.
        advance: function that is called after each clustering, for progress.

    Source:
        PathoROB (arXiv 2507.17845).
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    unit_ND = _narrowed(unit_rows(x_ND))
    most = min(MOST_CLUSTERS, len(unit_ND) - 2, len(np.unique(unit_ND.round(9), axis=0)) - 1)

    def clustered(clusters: int, number: int) -> Codes:
        random_state = _SEED + 1000 * seed + number
        model = KMeans(clusters, init="random", n_init=_STARTS, random_state=random_state)
        codes: Codes = model.fit(unit_ND).labels_.astype(np.int64)
        advance()
        return codes

    scores = {
        clusters: silhouette_score(unit_ND, clustered(clusters, 0), metric="cosine")
        for clusters in range(2, max(2, most) + 1)
    }
    best = max(scores, key=scores.__getitem__)
    return best, np.stack([clustered(best, trial) for trial in range(trials)])


def fits_of_clustering(trials: int, samples: int) -> int:
    """Return how often `clusterings` clusters, for progress."""
    return trials + max(1, min(MOST_CLUSTERS, samples - 2) - 1)


def clustering_score(
    cluster_TN: Codes, label_N: Codes, site_N: Codes, patient_N: Codes, weight_RP: Floats
) -> BootstrapEstimate:
    """Return the mean over clusterings of the adjusted Rand index with classes minus with sites.

    In a resample a pair of samples counts as often as both were drawn; a sample and itself are no
    pair.

    Args:
        cluster_TN: clusters from `clusterings`.
        label_N: class of each sample.
        site_N: site of each sample.
        patient_N: patient of each sample.
        weight_RP: how often each patient is drawn in each resample.
    """
    whole_RP = np.ones((1, weight_RP.shape[1]))
    values = [
        np.mean(
            [
                adjusted_rand(weights, cluster_N, label_N, patient_N)
                - adjusted_rand(weights, cluster_N, site_N, patient_N)
                for cluster_N in cluster_TN
            ],
            axis=0,
        )
        for weights in (whole_RP, weight_RP)
    ]
    return BootstrapEstimate(whole=float(values[0][0]), draws=values[1])


def adjusted_rand(weight_RP: Floats, one_N: Codes, other_N: Codes, patient_N: Codes) -> Floats:
    """Return the adjusted Rand index [R] of two codes of samples, for weights of patients.

    >>> codes = np.array([0, 0, 1, 1])
    >>> adjusted_rand(np.ones((1, 4)), codes, codes, np.arange(4))
    array([1.])
    """
    both_N = one_N * (int(other_N.max()) + 1) + other_N
    pairs_R = [_pairs(weight_RP, codes, patient_N) for codes in (both_N, one_N, other_N, 0 * one_N)]
    together, first, second, whole = pairs_R
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = first * second / whole
        most = (first + second) / 2
        return np.where(most == expected, 1.0, (together - expected) / (most - expected))


def _pairs(weight_RP: Floats, code_N: Codes, patient_N: Codes) -> Floats:
    """Return the weighted number of pairs of samples with the same code [R]."""
    _, code_N = np.unique(code_N, return_inverse=True)
    count_PC = np.zeros((weight_RP.shape[1], int(code_N.max()) + 1))
    np.add.at(count_PC, (patient_N, code_N), 1)
    total_RC, squares_RC = weight_RP @ count_PC, weight_RP**2 @ count_PC
    return np.asarray(((total_RC**2 - squares_RC) / 2).sum(axis=1))


def _narrowed(unit_ND: Floats) -> Floats:
    """Return the rows in as many dimensions as they span, all distances the same."""
    if len(unit_ND) >= unit_ND.shape[1]:
        return unit_ND
    left, spread, _ = np.linalg.svd(unit_ND, full_matrices=False)
    return np.asarray(left * spread)
