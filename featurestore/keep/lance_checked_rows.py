"""Rows of `slides` and `catalog`, each compared with its checksum, in memory that does not grow.

Of each row only what is compared with other rows is kept: 40 to 120 bytes instead of the pictures
of a slide, which make a row of 30 kB.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import lance
import polars as pl
import pyarrow as pa

from featurestore.checksums import row_crc32
from featurestore.damage import ROW, TABLE, Damage
from featurestore.keep.reading import UnreadableError, read
from featurestore.lance_tables import open_table
from featurestore.schema import CATALOG, SLIDES
from featurestore.storage import Store

# A batch of slides with pictures is then about 4 MB, and Lance reads one ahead.
BATCH_ROWS = {SLIDES: 128, CATALOG: 8192}
BUFFER_BYTES = 32 << 20
PARTS = 64  # so many batches are joined into one: each has buffers of its own
KEPT = {
    SLIDES: ("slide", "slide_id", "state"),
    CATALOG: (
        "slide",
        "slide_id",
        "mpp",
        "teacher",
        "tiles",
        "crc32",
        "fragment",
        "row_start",
        "shard",
        "shard_bytes",
        "shard_crc32",
        "index_crc32",
    ),
}


def batches(
    table: lance.LanceDataset, rows: int, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield all rows of a table, a few at a time."""
    scanner = table.scanner(
        columns=None if columns is None else list(columns),
        batch_size=rows,
        batch_readahead=1,
        fragment_readahead=1,
        io_buffer_size=BUFFER_BYTES,
        scan_in_order=True,
    )
    yield from scanner.to_batches()


def checked_rows(store: Store, rel: str, version: int, damage: list[Damage]) -> pl.DataFrame | None:
    """Read `slides` or `catalog` in full and compare every row with its checksum.

    Args:
        store: the lake's files.
        rel: the table.
        version: its version.
        damage: what is found is appended.

    Returns:
        What is compared with other rows, or None if the table can't be read in full.
    """
    try:
        table = read(store, lambda: open_table(store, rel, version))
        empty = _empty(table, rel)
        joined, rows = [empty], 0
        parts: list[pl.DataFrame] = []
        stream = batches(table, BATCH_ROWS[rel])
        while (batch := read(store, lambda: next(stream, None))) is not None:
            rows += batch.num_rows
            part = batch.to_pylist()
            damage += _row_damage(rel, part)
            # Copied by way of Python: a column alone would keep the memory of its whole batch.
            columns = {name: [row[name] for row in part] for name in empty.columns}
            parts.append(pl.DataFrame(columns, schema=empty.schema))
            if len(parts) == PARTS:
                joined.append(pl.concat(parts, rechunk=True))
                parts = []
        named = read(store, table.count_rows)
        if rows != named:
            why = f"{rows} rows can be read of {named} that were committed"
            raise UnreadableError(why)
        return pl.concat([*joined, *parts], rechunk=False)
    except UnreadableError as error:
        what = f"table {rel} can't be read in full: {error}"
        damage.append(Damage(what=what, part=TABLE, path=rel))
        return None


def _empty(table: lance.LanceDataset, rel: str) -> pl.DataFrame:
    kept = [field for field in table.schema if field.name in KEPT[rel]]
    empty = pl.DataFrame(pa.schema(kept).empty_table())
    few = {"state", "teacher"} & set(empty.columns)  # few values in millions of rows
    return empty.with_columns(pl.col(name).cast(pl.Categorical) for name in few)


def _row_damage(rel: str, rows: Sequence[dict[str, Any]]) -> Iterator[Damage]:
    for row in rows:
        if row["row_crc32"] != row_crc32(row):
            # A row of the catalog says which rows of a features table are whose: if it can't be
            # believed, nothing can be judged by it.
            yield Damage(
                slide=row["slide_id"],
                mpp=row.get("mpp") if rel == CATALOG else None,
                teacher=row.get("teacher"),
                what=f"its row of {rel} is not the one that was written (checksum)",
                part=TABLE if rel == CATALOG else ROW,
                number=row["slide"],
                path=rel,
            )
