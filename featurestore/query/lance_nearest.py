"""The tiles nearest to a vector by a teacher's features: cosine distance, all of them or by index.

Lance reads again the vectors of what an index proposes, so distances are exact either way; only
which tiles are proposed may differ. Tiles without features, left out by the teacher
(NaN) or all zero have no distance and are never among the nearest.

Shape letters: Q queries, D width of the features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lance
import numpy as np
import numpy.typing as npt
import polars as pl

from featurestore.errors import DamageError, LakeError
from featurestore.storage.read_errors import reason_of
from featurestore.storage.store import Store
from featurestore.tables.lance_flat import Float16Array

# Candidates of an index to compare exactly, as a multiple of the neighbours to return.
REFINE = 20
PLACE = ["slide_id", "tile_id", "x", "y"]
NEIGHBOURS = pl.Schema(
    {
        "query": pl.Int32,
        "slide_id": pl.String,
        "tile_id": pl.Int64,
        "x": pl.Int32,
        "y": pl.Int32,
        "distance": pl.Float32,
    }
)


@dataclass(frozen=True, kw_only=True)
class SearchedColumn:
    """A teacher's column of one version of a features table.

    Attributes:
        store: the lake's files.
        table: the table.
        teacher: the column.
        where: Lance filter of the rows that are searched; None for all.
        exact: whether an index is left aside.
    """

    store: Store
    table: lance.LanceDataset
    teacher: str
    where: str | None = None
    exact: bool = False


def index_name(teacher: str) -> str:
    """Return the name of the index of a teacher's column in its table."""
    return f"{teacher}_nearest"


def covered(table: lance.LanceDataset, teacher: str) -> set[int]:
    """Return the fragments of a table that the index of a teacher's column covers."""
    fragments = {fragment.fragment_id for fragment in table.get_fragments()}
    return {
        number
        for index in table.describe_indices()
        if index.name == index_name(teacher)
        for segment in index.segments
        for number in segment.fragment_ids
    } & fragments


def queries_of(query: npt.ArrayLike, teacher: str, dim: int) -> Float16Array:
    """Return query vectors [Q, D]; one vector [D] is a single query. Only directions count.

    They are scaled by powers of two and rounded to float16: stored features lose nothing, other
    vectors move by about 1e-5 in cosine.

    Raises:
        LakeError: the shape is another, a value is not finite, or a vector is all zero.
    """
    numbers = np.asarray(query, np.float64)
    vectors = np.atleast_2d(numbers)
    if numbers.ndim not in {1, 2} or vectors.shape[1] != dim or not len(vectors):
        msg = (
            f"a query of shape {numbers.shape} was given; features of '{teacher}' have {dim} values"
        )
        raise LakeError(msg)
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    if not np.isfinite(largest).all() or not largest.all():
        msg = "a query with a value that is not finite, or with zeros alone, is near to nothing"
        raise LakeError(msg)
    scaled: Float16Array = np.ldexp(vectors, -np.frexp(largest)[1]).astype(np.float16)
    return scaled


def nearest(column: SearchedColumn, query_QD: Float16Array, k: int) -> pl.DataFrame:
    """Return the k nearest rows of each query, nearest first; ties by slide_id and tile_id.

    Returns:
        Columns query (its number), slide_id, tile_id, x, y, distance (1 - cosine, 0 to 2). A query
        has fewer rows if fewer have features.

    Raises:
        DamageError: the table or its index can't be read.
    """
    ask = {
        "column": column.teacher,
        "q": query_QD,  # float16, as the column is; Lance compares in float32
        "k": k,
        "metric": "cosine",
        "use_index": not column.exact,
        "refine_factor": None if column.exact else REFINE,
    }
    try:
        table = column.table.scanner(
            columns=[*PLACE, "_distance"],
            nearest={
                option_name: option for option_name, option in ask.items() if option is not None
            },
            filter=column.where,
            prefilter=True,
        ).to_table()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        raise _search_error(column, error) from error
    neighbours = pl.DataFrame(table).rename({"query_index": "query", "_distance": "distance"})
    order = ["query", "distance", "slide_id", "tile_id"]
    return neighbours.select(NEIGHBOURS.names()).cast(NEIGHBOURS).sort(order)


def _search_error(column: SearchedColumn, error: BaseException) -> LakeError:
    if explanation := column.store.explained(error):
        return explanation
    why = reason_of(error)
    advice = "run verify" if column.exact else "an exact search goes without the index, if it is it"
    msg = f"features of '{column.teacher}' can't be searched ({advice}): {why}"
    return DamageError(msg)


def is_readable(column: SearchedColumn) -> bool:
    """Whether all parts of an index can be read: none is missing or cut."""
    dim = column.table.schema.field(column.teacher).type.list_size
    ask: dict[str, Any] = {
        "column": column.teacher,
        "q": np.ones(dim, np.float16),
        "k": 1,
        "search_effort": 1.0,
    }
    try:
        column.table.scanner(columns=[], nearest=ask, fast_search=True, with_row_id=True).to_table()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException:  # noqa: BLE001 - a panic in Rust is no Exception
        return False
    return True


def slide_filter(within: Sequence[int] | None, without: Sequence[int]) -> str | None:
    """Return a Lance filter of rows by slide number; None lets all through."""
    parts = []
    if within is not None:
        parts.append(f"slide IN ({', '.join(map(str, sorted(set(within)))) or -1})")
    if without:
        parts.append(f"slide NOT IN ({', '.join(map(str, sorted(set(without))))})")
    return " AND ".join(parts) or None
