"""Similarity of two embeddings of the same tiles, and retrieval by one of them.

Plain numpy, in float64 for sums and float32 for neighbours. The table of tiles x tiles is never
in memory as a whole, only some of its rows.

Shape letters: N tiles, D E embeddings, Q queries, K neighbours.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from distill.errors import DistillError

ROWS = 512  # rows of a table of similarities that are computed together
FLAT = 1e-12

Array = npt.NDArray[np.floating]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def unit_rows(x_ND: Array) -> Float32Array:
    """Return the rows at length 1 [N, D]; a row of zeros stays a row of zeros."""
    x = x_ND.astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    unit_ND: Float32Array = (x / np.maximum(length, FLAT)).astype(np.float32)
    return unit_ND


def cosines(one_ND: Array, other_ND: Array) -> Float64Array:
    """Return the cosine of each row with the same row of the other [N]; 0 for rows of zeros."""
    one, other = one_ND.astype(np.float64), other_ND.astype(np.float64)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosine_N: Float64Array = (one * other).sum(axis=1) / np.maximum(lengths, FLAT)
    return cosine_N


# ---------------------------------------------------------------------- centred kernel alignment


def cka(one_ND: Array, other_NE: Array) -> float:
    """Compute linear CKA of two embeddings of the same tiles: 1 if equal up to rotation and scale.

    Source: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", eq. 3
    in its form over features. With fewer tiles than channels CKA is high for any two embeddings:
    use `cka_debiased` then. NaN if one of the embeddings is constant.

    Raises:
        DistillError: the numbers of tiles differ.
    """
    one, other = _centred(one_ND, other_NE)
    cross, one_norm, other_norm = (np.linalg.norm(a.T @ b) for a, b in _pairs(one, other))
    product = float(one_norm * other_norm)
    return float(cross) ** 2 / product if product > 0 else float("nan")


def cka_debiased(one_ND: Array, other_NE: Array) -> float:
    """Compute linear CKA by the unbiased estimate of HSIC: about 0 for embeddings of no relation.

    The estimate may be a little below 0. Source: Song et al. 2012, "Feature Selection via
    Dependence Maximization", eq. 5, as Nguyen et al. 2021 use it for CKA; here over features, so
    that no kernel of N x N is computed. NaN if one of the embeddings is constant.

    Raises:
        DistillError: the numbers of tiles differ, or there are fewer than 4.
    """
    one, other = _centred(one_ND, other_NE)
    if len(one) < 4:
        msg = f"{len(one)} tiles given; the debiased CKA needs 4 or more"
        raise DistillError(msg)
    cross, one_hsic, other_hsic = (_hsic(a, b) for a, b in _pairs(one, other))
    is_defined = min(one_hsic, other_hsic) > 0
    return cross / (one_hsic * other_hsic) ** 0.5 if is_defined else float("nan")


def _pairs(one: Float64Array, other: Float64Array) -> list[tuple[Float64Array, Float64Array]]:
    return [(one, other), (one, one), (other, other)]


def _centred(one_ND: Array, other_NE: Array) -> list[Float64Array]:
    """Centre both embeddings around their means, scaled so that products stay in range."""
    if len(one_ND) != len(other_NE):
        msg = f"{len(one_ND)} and {len(other_NE)} tiles given; both must be of the same tiles"
        raise DistillError(msg)
    centred_pair = []
    for x_ND in (one_ND, other_NE):
        centred = x_ND.astype(np.float64) - x_ND.astype(np.float64).mean(axis=0)
        scale = np.abs(x_ND).max(initial=0.0) or 1.0
        spread = np.linalg.norm(centred) / len(centred) ** 0.5
        # A constant embedding leaves only rounding errors, which count as 0.
        centred_pair.append(centred / spread if spread > 1e-6 * scale else np.zeros_like(centred))
    return centred_pair


def _hsic(one_ND: Float64Array, other_NE: Float64Array) -> float:
    """Compute Song's unbiased HSIC of linear kernels without diagonals, from features alone."""
    count = len(one_ND)
    one_square_N, other_square_N = (np.square(x).sum(axis=1) for x in (one_ND, other_NE))
    trace = np.square(one_ND.T @ other_NE).sum() - one_square_N @ other_square_N
    # Row sums of the kernels without diagonal; features are centred, so with it they are 0.
    row_sums = -one_square_N, -other_square_N
    total = row_sums[0].sum() * row_sums[1].sum() / ((count - 1) * (count - 2))
    both = 2 * (row_sums[0] @ row_sums[1]) / (count - 2)
    return float(trace + total - both) / (count * (count - 3))


# ---------------------------------------------------------------------- neighbours


def similarity_rows(query_QD: Array, gallery_ND: Array) -> Iterator[tuple[slice, Float32Array]]:
    """Yield row ranges and the cosines of these queries with the whole gallery [ROWS, N]."""
    query, gallery = unit_rows(query_QD), unit_rows(gallery_ND)
    for start in range(0, len(query), ROWS):
        rows = slice(start, min(start + ROWS, len(query)))
        yield rows, query[rows] @ gallery.T


def neighbours(x_ND: Array, k: int) -> Int64Array:
    """Find the k most similar other tiles of each tile by cosine [N, K], in no order.

    K is smaller than `k` if there are fewer other tiles.
    """
    count = min(k, len(x_ND) - 1)
    nearest_NK = np.empty((len(x_ND), max(count, 0)), np.int64)
    for rows, like in similarity_rows(x_ND, x_ND) if count > 0 else ():
        like[np.arange(len(like)), np.arange(rows.start, rows.stop)] = -np.inf
        nearest_NK[rows] = np.argpartition(-like, count - 1, axis=1)[:, :count]
    return nearest_NK


def overlap(one_NK: Int64Array, other_NK: Int64Array) -> float:
    """Return the mean share of neighbours that embeddings have in common; K / (N - 1) by chance."""
    shared = (one_NK[:, :, None] == other_NK[:, None, :]).any(axis=2)
    return float(shared.mean()) if shared.size else float("nan")


# ---------------------------------------------------------------------- retrieval


def retrieval(
    x_ND: Array, label_N: Int64Array, group_N: Int64Array, *, ks: Sequence[int] = (1, 3, 5)
) -> dict[str, Float64Array]:
    """Search each tile among the tiles of all other groups by cosine, and score the ranking.

    Args:
        x_ND: embeddings of the tiles.
        label_N: class of each tile.
        group_N: patient of each tile; tiles of the query's patient are not searched.
        ks: numbers of first tiles that are scored.

    Returns:
        Per tile [N]: `acc@k`, whether a tile among the first k has the query's label; `ap`, the
        average precision of the whole ranking. NaN for tiles with a label that no other group has.
    """
    names = [*(f"acc@{k}" for k in ks), "ap"]
    per_tile = {name: np.full(len(x_ND), np.nan) for name in names}
    for rows, like in similarity_rows(x_ND, x_ND):
        for at, similar in enumerate(like, start=rows.start):
            others = group_N != group_N[at]
            hits = label_N[others] == label_N[at]
            if hits.any():
                ranked = hits[np.argsort(-similar[others], kind="stable")]
                for k in ks:
                    per_tile[f"acc@{k}"][at] = ranked[:k].any()
                per_tile["ap"][at] = average_precision(ranked)
    return per_tile


def average_precision(ranked_N: BoolArray) -> float:
    """Return the mean precision at the places of the hits, in a ranking with at least one hit."""
    at = np.flatnonzero(ranked_N)
    return float(np.mean(np.arange(1, len(at) + 1) / (at + 1)))


def twin_ranks(one_ND: Array, other_ND: Array) -> Int64Array:
    """Return each tile's rank of its twin by cosine, from 1: tiles of `one`, then of `other` [2N].

    All other tiles of both variants are candidates, as in PLISM's benchmark (owkin/plism-benchmark,
    `metrics/retrieval.py`). Ties rank before the twin, so a network with the same
    output for all tiles retrieves no twin.
    """
    both, count = np.concatenate([one_ND, other_ND]), len(one_ND)
    ranks = np.empty(2 * count, np.int64)
    for rows, like in similarity_rows(both, both):
        own = np.arange(rows.start, rows.stop)
        at, twin = np.arange(len(own)), (own + count) % (2 * count)
        twin_cosine = like[at, twin].copy()
        like[at, own], like[at, twin] = -np.inf, -np.inf
        ranks[rows] = 1 + (like >= twin_cosine[:, None]).sum(axis=1)
    return ranks


def top_k(ranks: Int64Array, ks: Sequence[int]) -> dict[str, float]:
    """Return the share of twins among the first k, by `topK`; k / (2N - 1) by chance."""
    return {f"top{k}": float((ranks <= k).mean()) for k in ks}
