"""Choices of tiles by their features, without gradients: clusters, coverage, typicality.

Shape letters: N tiles, D embedding, K clusters.
"""

import numpy as np
import numpy.typing as npt
from sklearn.cluster import MiniBatchKMeans

from distill.errors import DistillError
from distill.recipes.recipe import CORESETS

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

COVERAGE, HARD, EASY, RANDOM = CORESETS
#: Width to which features are projected before distances are compared many times.
PROJECTED = 64
BATCH_TILES = 4096


class Clusters:
    """Clusters of tiles by k-means on their features at length 1.

    Args:
        sample_ND: features of a sample of the tiles.
        clusters: number of clusters K; fewer where the sample is smaller.
        seed: seed of the start.
    """

    def __init__(self, sample_ND: Float32Array, clusters: int, seed: int) -> None:
        if not len(sample_ND):
            msg = "no tiles to make clusters of"
            raise DistillError(msg)
        self._means = MiniBatchKMeans(
            min(clusters, len(sample_ND)),
            random_state=seed,
            batch_size=BATCH_TILES,
            n_init=1,
        ).fit(unit_rows(sample_ND))

    def of(self, features_ND: Float32Array) -> tuple[Int64Array, Float32Array]:
        """Return each tile's cluster [N], and its distance to the cluster's centre [N]."""
        unit_ND = unit_rows(features_ND)
        distance_NK = self._means.transform(unit_ND)
        cluster_N = distance_NK.argmin(axis=1).astype(np.int64)
        return cluster_N, distance_NK[np.arange(len(unit_ND)), cluster_N].astype(np.float32)


def unit_rows(x_ND: Float32Array) -> Float32Array:
    """Return rows at length 1; rows of zeros stay."""
    length_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
    return np.asarray(x_ND / np.where(length_N1 > 0, length_N1, 1), np.float32)


def farthest_first(x_ND: Float32Array, count: int) -> Int64Array:
    """Return the places of `count` tiles that cover all: each the farthest from those before.

    The first is the one nearest to the mean. The greatest distance of a tile to its nearest chosen
    one is then at most twice the least that so many tiles can reach.

    Source: Gonzalez 1985, "Clustering to minimize the maximum intercluster distance"; as a choice
    of training samples in Sener and Savarese 2018 (arXiv 1708.00489).

    >>> farthest_first(np.array([[0.0], [1.0], [2.0], [10.0]], np.float32), 3).tolist()
    [2, 3, 0]
    """
    chosen = [int(np.linalg.norm(x_ND - x_ND.mean(axis=0), axis=1).argmin())]
    nearest_N = np.full(len(x_ND), np.inf, np.float32)
    while len(chosen) < count:
        distance_N = np.linalg.norm(x_ND - x_ND[chosen[-1]], axis=1)
        nearest_N = np.minimum(nearest_N, distance_N)
        nearest_N[chosen[-1]] = -1.0  # also where tiles are equal none comes twice
        chosen.append(int(nearest_N.argmax()))
    return np.array(chosen, np.int64)


def projected(x_ND: Float32Array) -> Float32Array:
    """Project wide features to `PROJECTED` channels by a fixed random matrix.

    Distances are kept up to some per cent (Johnson and Lindenstrauss 1984).
    """
    dim = x_ND.shape[1]
    if dim <= PROJECTED:
        return x_ND
    matrix = np.random.default_rng(0).normal(size=(dim, PROJECTED)) / PROJECTED**0.5
    return np.asarray(x_ND @ matrix.astype(np.float32))


def kept_by_score(distance_N: Float32Array, share: float, kind: str) -> Int64Array:
    """Return the places, ascending, of the tiles farthest from (hard) or nearest to their centre.

    Source: Sorscher et al. 2022, "Beyond neural scaling laws" (arXiv 2206.14486), whose prototype
    score needs no labels and no gradients: hard tiles where there are many, easy ones where few.

    Args:
        distance_N: distance of each tile to the centre of its cluster.
        share: share of the tiles that is kept.
        kind: hard or easy.
    """
    count = max(1, round(share * len(distance_N)))
    order = np.argsort(-distance_N if kind == HARD else distance_N, kind="stable")
    return np.sort(order[:count])
