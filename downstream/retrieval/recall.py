"""Recall of an index against the exact search, on random tiles of the lake.

Shape letters: Q sampled tiles, D width of the features.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

if TYPE_CHECKING:
    from featurestore import Lake

RECALL_TILES = 16
RECALL_BYTES = 2 * 10**9
"""Most bytes of features for which an exact pass takes seconds only."""
# Lance sums in float32: two tiles that are this close are equally near.
_TIE = 1e-6


def measure_recall(
    lake: "Lake", features: str, *, mpp: float, k: int, tiles: int, seed: int = 0
) -> dict[str, Any]:
    """Return recall@k of the index against the exact search, over random tiles with features.

    Args:
        lake: the lake, with an index of this teacher.
        features: name of the teacher.
        mpp: microns per pixel of the tiles.
        k: number of neighbours of each tile, without the tile itself.
        tiles: number of tiles that are drawn.
        seed: seed of the draw.

    Returns:
        `k`, `tiles` (the number of queries), `mean` and `worst` (mean and least recall of the
        queries; both None if no drawn tile can be compared).
    """
    tile_id_Q, vector_QD = sample_tiles(lake, features, mpp=mpp, n=tiles, seed=seed)
    if not len(tile_id_Q):
        return {"k": k, "tiles": 0, "mean": None, "worst": None}
    by_index, true = (
        lake.nearest(vector_QD, features, mpp=mpp, k=k + 1, exact=exact) for exact in (False, True)
    )
    recall_Q = recall_at_k(by_index, true, tile_id_Q, k)
    return {
        "k": k,
        "tiles": len(recall_Q),
        "mean": float(recall_Q.mean()),
        "worst": float(recall_Q.min()),
    }


def recall_at_k(
    by_index: pl.DataFrame, exact: pl.DataFrame, tile_id_Q: NDArray[np.int64], k: int
) -> NDArray[np.float64]:
    """Return the share of each query's k true neighbours that the index returns.

    A tile as near as the farthest true neighbour counts, as in ann-benchmarks
    (`plotting/metrics.py`): of equal tiles any may be found.

    Args:
        by_index: rows of `Lake.nearest`, at least k + 1 a query.
        exact: rows of the exact search for the same queries.
        tile_id_Q: key of each query's tile.
        k: number of neighbours, without the query.

    Returns:
        float64[Q], 0 to 1.
    """
    recall_Q = np.ones(len(tile_id_Q))
    for query, tile_id in enumerate(tile_id_Q.tolist()):
        own = (pl.col("query") == query) & (pl.col("tile_id") != tile_id)
        exact_distances, index_distances = (
            frame.filter(own)["distance"].head(k) for frame in (exact, by_index)
        )
        if len(exact_distances):
            hits = int((index_distances.to_numpy() <= exact_distances[-1] + _TIE).sum())
            recall_Q[query] = hits / len(exact_distances)
    return recall_Q


def sample_tiles(
    lake: "Lake", features: str, *, mpp: float, n: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """Return keys [Q] and features [Q, D] of random tiles with features, all equally likely.

    They are fewer than n where tiles were left out of the extraction (NaN) or are all zero.
    """
    from featurestore.tables import Ranges

    rows = lake.features_of(features, mpp=mpp).filter(pl.col("tiles") > 0)
    ends = np.cumsum(rows["tiles"].to_numpy())
    total = int(ends[-1])
    drawn = np.sort(np.random.default_rng(seed).choice(total, min(n, total), replace=False))
    slide = np.searchsorted(ends, drawn, side="right")
    inside = drawn - (ends - rows["tiles"].to_numpy())[slide]
    ranges = Ranges(
        fragment=rows["fragment"].to_numpy()[slide],
        start=rows["row_start"].to_numpy()[slide] + inside,
        rows=np.ones(len(drawn), np.int64),
    )
    read = lake.row_reader(mpp=mpp).read(ranges, [features])
    vector_QD = read.by_teacher[features]
    good = np.isfinite(vector_QD).all(axis=1) & vector_QD.any(axis=1)
    return read.tile_id[good], vector_QD[good]
