"""Lance tables as Polars LazyFrames.

Projection, `head` and plain limits reach Lance; predicates are applied by Polars on each batch, so
the answer always equals the same query on a collected frame.
"""

from collections.abc import Callable, Iterator, Sequence

import lance
import polars as pl
from polars.io.plugins import register_io_source

BATCH_ROWS = 8192


def scan(open_table: Callable[[], lance.LanceDataset], columns: Sequence[str]) -> pl.LazyFrame:
    """A LazyFrame over columns of a table at the version that `open_table` opens.

    Args:
        open_table: called once for the schema and once per collected query.
        columns: the columns of the frame, in order.
    """
    schema = open_table().schema
    empty = pl.DataFrame(schema.empty_table().select(list(columns)))

    def batches(
        with_columns: list[str] | None,
        predicate: pl.Expr | None,
        n_rows: int | None,
        batch_size: int | None,
    ) -> Iterator[pl.DataFrame]:
        limit = n_rows if predicate is None else None
        scanner = open_table().scanner(
            columns=list(columns) if with_columns is None else with_columns,
            limit=limit,
            batch_size=min(batch_size or BATCH_ROWS, BATCH_ROWS),
        )
        left = n_rows
        for batch in scanner.to_batches():
            frame = pl.DataFrame(batch)
            if predicate is not None:
                frame = frame.filter(predicate)
            if left is not None:
                frame = frame.head(left)
                left -= frame.height
            yield frame
            if left == 0:
                return

    return register_io_source(batches, schema=dict(empty.schema), is_pure=True)
