"""The tiles nearest to a vector by a quantised column: every tile is decoded and compared.

Shape letters: Q queries, N tiles of a batch, D width of the features.
"""

from collections.abc import Iterator
from typing import Any

import lance
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from featurestore.query.lance_nearest import NEIGHBOURS, PLACE, SearchedColumn
from featurestore.query.lance_scan import Decoder
from featurestore.storage.read_errors import reading
from featurestore.tables.lance_flat import Float16Array
from featurestore.tables.lance_rows import matrix

ROWS_AT_ONCE = 8192


def nearest_by_codes(
    column: SearchedColumn, decoder: Decoder, query_QD: Float16Array, k: int
) -> pl.DataFrame:
    """Return the k nearest rows of each query, as `lance_nearest.nearest` does.

    Args:
        column: the quantised column.
        decoder: its decoder.
        query_QD: the queries.
        k: number of rows of each query.

    Raises:
        DamageError: the table or the codec can't be read.
    """
    unit_QD = query_QD.astype(np.float32)
    unit_QD /= np.linalg.norm(unit_QD, axis=1, keepdims=True)
    best = NEIGHBOURS.to_frame()
    with reading(column.store, f"features of '{column.teacher}' can't be searched"):
        for batch in _batches(column.table, column.teacher, column.where):
            codes: Any = matrix(batch[column.teacher])
            features = decoder.decode(codes).astype(np.float32)
            distance_NQ = _distances(features, unit_QD)
            near = [_nearest_rows(batch, d_N, k, q) for q, d_N in enumerate(distance_NQ.T)]
            best = pl.concat([best, *near]).sort("query", "distance", "slide_id", "tile_id")
            best = best.group_by("query", maintain_order=True).head(k)
    return best.select(NEIGHBOURS.names())


def _batches(table: lance.LanceDataset, teacher: str, where: str | None) -> Iterator[pa.Table]:
    """Yield rows that have codes."""
    row_filter = f"`{teacher}` IS NOT NULL" + (f" AND ({where})" if where else "")
    scanner = table.scanner(
        columns=[*PLACE, teacher], filter=row_filter, prefilter=True, batch_size=ROWS_AT_ONCE
    )
    for batch in scanner.to_batches():
        yield pa.table(batch)


def _distances(
    features_ND: npt.NDArray[np.float32], unit_QD: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return 1 - cosine [N, Q]; NaN of a row that is left out or all zero."""
    norm_N = np.linalg.norm(features_ND, axis=1, keepdims=True)
    distance_NQ: npt.NDArray[np.float32] = np.full((len(features_ND), len(unit_QD)), np.nan, "f4")
    good = np.isfinite(norm_N[:, 0]) & (norm_N[:, 0] > 0)
    distance_NQ[good] = 1 - features_ND[good] / norm_N[good] @ unit_QD.T
    return distance_NQ


def _nearest_rows(
    batch: pa.Table, distance_N: npt.NDArray[np.float32], k: int, query: int
) -> pl.DataFrame:
    """Return the nearest rows of a batch, and all that are as near as the last of them."""
    kept = np.flatnonzero(~np.isnan(distance_N))
    if len(kept) > k:
        limit = np.partition(distance_N[kept], k - 1)[k - 1]
        kept = kept[distance_N[kept] <= limit]
    rows = pl.DataFrame(batch.select(PLACE).take(kept))
    own = [pl.lit(query, pl.Int32).alias("query"), pl.Series("distance", distance_N[kept])]
    return rows.with_columns(own).select(NEIGHBOURS.names()).cast(NEIGHBOURS)
