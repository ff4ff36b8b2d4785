"""Lance tables as Polars LazyFrames: projection, `head` and predicates reach Lance.

Polars applies the whole predicate again to what Lance lets through, so the answer equals the same
query on a collected frame. Lance reads ahead by whole fragments and Polars does not pass how many
rows it needs, so a table is read in steps that grow: an early answer (`filter` and then
`head`) costs at most about four times its own bytes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import lance
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source

from featurestore.errors import LakeError
from featurestore.query.pushdown import Schema, lance_filter
from featurestore.storage.read_errors import reading
from featurestore.storage.store import Store
from featurestore.tables.lance_tables import shown_uri

BATCH_ROWS = 8192
BATCH_BYTES = 16 << 20  # of a batch; Lance decodes several at once
STEP_BYTES = 1 << 20  # of the first step
STEP_GROWTH = 4


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """What makes float16 features of the codes of a quantised column.

    Attributes:
        dim: number of features of a row, D.
        decode: function from codes [N, C] to features [N, D].
    """

    dim: int
    decode: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float16]]

    def series(self, codes: pl.Series) -> pl.Series:
        """Return a column of codes as features; null stays null."""
        is_coded = codes.is_not_null()
        kept = codes.drop_nulls().to_numpy().reshape(-1, codes.dtype.size)  # type: ignore[attr-defined]
        kind = pl.Array(pl.Float16, self.dim)
        features = pl.Series(codes.name, self.decode(kept), dtype=kind)
        if is_coded.all():
            return features
        if not len(kept):
            return pl.Series(codes.name, [None] * len(codes), dtype=kind)
        rows = pl.Series(np.cumsum(is_coded.to_numpy()) - 1, dtype=pl.Int64)
        return features.gather(pl.select(pl.when(is_coded).then(rows)).to_series())


def scan(
    open_table: Callable[[], lance.LanceDataset],
    columns: Sequence[str],
    decoders: Mapping[str, Decoder] | None = None,
) -> pl.LazyFrame:
    """Return a LazyFrame over columns of a table at the version that `open_table` opens.

    Args:
        open_table: called once for the schema and once per collected query.
        columns: the columns of the frame, in order.
        decoders: decoders of quantised columns; without one, codes come as they are.
    """
    schema: Schema = pl.DataFrame(open_table().schema.empty_table().select(list(columns))).schema
    decoded = {name: one for name, one in (decoders or {}).items() if name in columns}
    features = {name: pl.Array(pl.Float16, one.dim) for name, one in decoded.items()}
    schema = pl.Schema({**schema, **features})

    def batches(
        with_columns: list[str] | None,
        predicate: pl.Expr | None,
        n_rows: int | None,
        _batch_size: int | None,
    ) -> Iterator[pl.DataFrame]:
        # `with_columns` has what the predicate needs, too: Polars drops it afterwards.
        names = list(columns) if with_columns is None else with_columns
        if n_rows is not None:
            # With both, Polars means `head` first and `filter` then.
            parts = _read(open_table(), names, None, 0, n_rows)
        else:
            pushed = None if predicate is None else lance_filter(predicate, schema)
            parts = _read_in_steps(open_table(), names, pushed)
        for batch in parts:
            frame = pl.DataFrame(batch)
            coded = [decoded[name].series(frame[name]) for name in names if name in decoded]
            frame = frame.with_columns(coded)
            yield frame if predicate is None else frame.filter(predicate)

    return register_io_source(batches, schema=dict(schema), is_pure=True)


def as_type(frame: pl.LazyFrame, dims: Mapping[str, int], dtype: str | None) -> pl.LazyFrame:
    """Return a frame with its features cast from float16 to another type.

    Args:
        frame: frame with feature columns of some of the teachers.
        dims: teachers and how many values their features have.
        dtype: none for float16, or "float32".

    Raises:
        LakeError: another type is requested.
    """
    if dtype in (None, "float16"):
        return frame
    if dtype != "float32":
        msg = f"dtype '{dtype}' given; features come as float16, as they are stored, or float32"
        raise LakeError(msg)
    names = [name for name in frame.collect_schema().names() if name in dims]
    return frame.with_columns(pl.col(n).cast(pl.Array(pl.Float32, dims[n])) for n in names)


def _read_in_steps(
    table: lance.LanceDataset, names: list[str], pushed: str | None
) -> Iterator[pa.RecordBatch]:
    start, limit = 0, max(1, STEP_BYTES // _row_bytes(table.schema, names))
    while True:
        rows = 0
        for batch in _read(table, names, pushed, start, limit):
            rows += batch.num_rows
            yield batch
        if rows < limit:
            return
        start, limit = start + limit, limit * STEP_GROWTH


def _read(
    table: lance.LanceDataset, names: list[str], pushed: str | None, start: int, limit: int
) -> Iterator[pa.RecordBatch]:
    """Yield rows in order, from number `start` on among the rows that pass the filter."""
    rows = min(BATCH_ROWS, max(1, BATCH_BYTES // _row_bytes(table.schema, names)))
    with reading(Store(shown_uri(table)), f"table {shown_uri(table)}"):
        scanner = table.scanner(
            columns=names, filter=pushed, offset=start, limit=limit, batch_size=rows
        )
        yield from scanner.to_batches()


def _row_bytes(schema: pa.Schema, names: Sequence[str]) -> int:
    return sum(_value_bytes(schema.field(name).type) for name in names) or 1


def _value_bytes(kind: pa.DataType) -> int:
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * _value_bytes(kind.value_type)
    # Text has no width of its own; 32 bytes are about an identifier.
    return -(-int(kind.bit_width) // 8) if pa.types.is_primitive(kind) else 32
