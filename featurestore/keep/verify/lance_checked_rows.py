"""Rows of `slides` and `catalog`, each compared with its checksum, in memory that hardly grows.

Of each row only numbers are kept (see `compact_rows`) instead of the pictures of a slide, which
make a row of 30 kB.
"""

from collections.abc import Iterator, Sequence

import lance
import numpy as np
import pyarrow as pa

from featurestore.keep.verify.checked_reads import UnreadableError, read
from featurestore.keep.verify.compact_rows import (
    CatalogRows,
    Codes,
    GrowingColumns,
    IntArray,
    ReadAgain,
    Row,
    SlideRows,
)
from featurestore.keep.verify.damage import ROW, TABLE, Damage
from featurestore.storage.store import Store
from featurestore.tables.checksums import row_crc32
from featurestore.tables.lance_tables import open_table
from featurestore.tables.schema import CATALOG, SLIDES

# A batch of slides with pictures is then about 4 MB, and Lance reads one ahead.
BATCH_ROWS = {SLIDES: 128, CATALOG: 8192}
BUFFER_BYTES = 32 << 20
# A catalog with more damaged rows than this is not described by a line for each of them.
MOST = 1000


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


def checked_slides(store: Store, version: int, damage: list[Damage]) -> SlideRows | None:
    """Read `slides` in full and compare every row with its checksum.

    Args:
        store: the lake's files.
        version: version of the table.
        damage: list to which damage is appended.

    Returns:
        What is compared with other rows, or None if the table can't be read in full.
    """
    try:
        table = read(store, lambda: open_table(store, SLIDES, version))
        kept = GrowingColumns()
        for batch in _checked_batches(store, table, SLIDES, damage):
            kept.add(SlideRows.arrays(batch))
        again = _reader(store, table, SlideRows.READ)
        return SlideRows(**kept.joined(SlideRows.KINDS), again=again)
    except UnreadableError as error:
        damage.append(_unreadable(SLIDES, error))
        return None


def checked_catalog(store: Store, version: int, damage: list[Damage]) -> CatalogRows | None:
    """Read `catalog` in full and compare every row with its checksum, as `checked_slides` does."""
    try:
        table = read(store, lambda: open_table(store, CATALOG, version))
        kept, codes = GrowingColumns(), Codes()
        for batch in _checked_batches(store, table, CATALOG, damage):
            kept.add(CatalogRows.arrays(batch, codes))
        again = _reader(store, table, CatalogRows.READ)
        return CatalogRows(**kept.joined(CatalogRows.KINDS), codes=codes, again=again)
    except UnreadableError as error:
        damage.append(_unreadable(CATALOG, error))
        return None


def _unreadable(rel: str, error: Exception) -> Damage:
    return Damage(description=f"table {rel} can't be read in full: {error}", part=TABLE, path=rel)


def _checked_batches(
    store: Store, table: lance.LanceDataset, rel: str, damage: list[Damage]
) -> Iterator[pa.RecordBatch]:
    rows = wrong = 0
    stream = batches(table, BATCH_ROWS[rel])
    while (batch := read(store, lambda: next(stream, None))) is not None:
        rows += batch.num_rows
        checked = read(store, lambda batch=batch: list(_row_damage(rel, batch.to_pylist())))  # type: ignore[misc]
        wrong += len(checked)
        # `repair` empties each damaged row of slides; a damaged catalog is damaged as a whole.
        damage += checked if rel == SLIDES or wrong <= MOST else []
        yield batch
    named = read(store, table.count_rows)
    if rows != named:
        why = f"{rows} rows can be read of {named} that were committed"
        raise UnreadableError(why)


def _reader(store: Store, table: lance.LanceDataset, columns: Sequence[str]) -> ReadAgain:
    names = [name for name in columns if name in table.schema.names]

    def again(positions: IntArray) -> list[Row]:
        if not len(positions):
            return []
        rows = np.asarray(positions, np.int64).tolist()
        taken: list[Row] = read(store, lambda: table.take(rows, columns=names).to_pylist())
        return taken

    return again


def _row_damage(rel: str, rows: Sequence[Row]) -> Iterator[Damage]:
    for row in rows:
        if row["row_crc32"] != row_crc32(row):
            # A row of the catalog gives the slide of rows of a features table: if it can't be
            # believed, nothing can be judged by it.
            yield Damage(
                slide=row["slide_id"],
                mpp=row.get("mpp") if rel == CATALOG else None,
                teacher=row.get("teacher"),
                description=f"its row of {rel} is not the one that was written (checksum)",
                part=TABLE if rel == CATALOG else ROW,
                number=row["slide"],
                path=rel,
            )
