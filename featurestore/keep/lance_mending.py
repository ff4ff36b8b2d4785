"""Steps of `repair` that rebuild files from undamaged files, or remove only damaged parts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lance
import pyarrow as pa
from lance import LanceOperation

from featurestore.commits import lance_features as features
from featurestore.commits.lance_ledger import Change, among
from featurestore.keep.verify.damage import Damage
from featurestore.keep.verify.root_files import add_checksums
from featurestore.lake import Lake
from featurestore.roots.lance_roots import record_roots
from featurestore.roots.roots_file import ROOTS_FILE, readable_roots
from featurestore.tables.checksums import with_row_crc32
from featurestore.tables.lance_files import put_files, write_column
from featurestore.tables.lance_rows import column_crc32
from featurestore.tables.lance_tables import (
    commit,
    make_index,
    open_table,
    without_rows,
    write_fragment,
)
from featurestore.tables.schema import (
    CATALOG,
    INDEX_COLUMNS,
    PENDING,
    SLIDES,
    SLIDES_SCHEMA,
    features_table,
)

DAMAGED_ROW = "its row in slides was damaged; ingest it again"


def count_rows(lake: Lake, mpp: float, fragment: int, slides: Sequence[int]) -> int:
    """Count the rows of some slides in a fragment."""
    part = lake.table(features_table(mpp)).get_fragment(fragment)
    return int(part.count_rows(among(slides))) if part else 0


def mend_roots(lake: Lake, paths: Sequence[str]) -> None:
    """Write files again of which `roots.json` has a copy, or that from a lake found whole."""
    roots = readable_roots(lake.store)
    for path in paths:
        if roots is not None and path in roots.texts:
            lake.store.write_bytes(path, roots.texts[path].encode())
    if ROOTS_FILE in paths:
        with lake.committer.exclusive(recover=False):
            record_roots(lake.store, lake.config)
            add_checksums(lake.store, lake.config)


def rebuild_table_index(lake: Lake, rel: str) -> None:
    """Rebuild the index of `slides` or `catalog`; remove the index of a features table.

    A search without an index is exact and slower; `slidelake search --build-index` builds one.
    """
    committer = lake.committer
    # The damaged index keeps every other writer out, so nothing is finished before it is mended.
    with committer.exclusive(recover=False):
        if rel in INDEX_COLUMNS:
            make_index(lake.store, rel, INDEX_COLUMNS[rel], replace=True)
        else:
            table = open_table(lake.store, rel)
            for index in table.describe_indices():
                table.drop_index(index.name)
        committer.finish()
        committer.apply([])


# ---------------------------------------------------------------------- rows of slides


def put_slide_rows_again(lake: Lake, damage: Sequence[Damage]) -> list[str]:
    """Write damaged rows of `slides` again with nothing in them but number and name, as pending.

    Which of a row's values is damaged can't be known, so no value is kept; the catalog, which
    is whole, holds the number of each name. The next ingest fills the row; the slide's tiles
    and features stay as they are.

    Returns:
        Names of the slides.
    """
    committer = lake.committer
    with committer.exclusive():
        names = _names_in_catalog(lake, damage)
        numbers = {name: number for number, name in names.items()}
        table = open_table(lake.store, SLIDES)
        where = " OR ".join(f"({_read_as(one)})" for one in damage)
        removed, updated = without_rows(table, where)
        rows = [_emptied(one, names, numbers) for one in damage]
        fresh = pa.Table.from_pylist(
            [{name: row.get(name) for name in SLIDES_SCHEMA.names} for row in rows],
            schema=SLIDES_SCHEMA,
        )
        operation = LanceOperation.Update(
            removed_fragment_ids=removed,
            updated_fragments=updated,
            new_fragments=write_fragment(lake.store, SLIDES, with_row_crc32(fresh)),
            fields_modified=[],
        )
        commit(lake.store, SLIDES, operation, read_version=table.version, properties={})
        committer.apply([])
    return sorted(row["slide_id"] for row in rows)


def _read_as(damage: Damage) -> str:
    name = (damage.slide or "").replace("'", "''")
    return f"slide = {damage.number} AND slide_id = '{name}'"


def _names_in_catalog(lake: Lake, damage: Sequence[Damage]) -> dict[int, str]:
    """Return the names by number of the slides in the catalog that a damaged row may be of."""
    table = lake.refreshed().table(CATALOG)
    quoted = (f"'{(one.slide or '').replace(chr(39), chr(39) * 2)}'" for one in damage)
    either = f"{among([one.number for one in damage])} OR slide_id IN ({', '.join(quoted)})"
    where = f"teacher IS NULL AND ({either})"
    rows = table.to_table(columns=["slide", "slide_id"], filter=where)
    pairs = zip(rows["slide"].to_pylist(), rows["slide_id"].to_pylist(), strict=True)
    return dict(pairs)


def _emptied(damage: Damage, names: dict[int, str], numbers: dict[str, int]) -> dict[str, Any]:
    number, name = damage.number, damage.slide or ""
    if number in names:
        name = names[number]
    elif name in numbers:
        number = numbers[name]
    return {
        "slide": number,
        "slide_id": name,
        "uri": "",
        "state": PENDING,
        "reason": DAMAGED_ROW,
    }


# ---------------------------------------------------------------------- features


def drop_features(lake: Lake, mpp: float, column: str, fragment: int, slides: set[int]) -> None:
    """Remove a column's values on some slides from a fragment; other slides keep theirs.

    A column of a fragment is one file: it is written again with the undamaged slides' own values
    and nulls for the others. Where nothing undamaged is left the whole column is removed.

    Args:
        lake: the lake.
        mpp: microns per pixel of the features table.
        column: a teacher, or an annotation of tiles.
        fragment: number of the fragment in the features table.
        slides: numbers of the slides with damaged values.
    """
    committer = lake.committer
    with committer.exclusive():
        rows = committer.ledger.rows_in(mpp, fragment)
        table = open_table(lake.store, features_table(mpp))
        parts = list(_undamaged(table, column, rows, fragment, slides))
        if not parts:
            committer.apply([features.drop_column(lake.store, mpp, column, [fragment])])
            return
        rel, field = features_table(mpp), table.schema.field(column)
        rows_in_fragment = table.get_fragment(fragment).physical_rows
        arrays = _with_nulls_between(parts, rows_in_fragment, field)
        path = write_column(lake.store, rel, field, arrays)
        kept = {part.slide for part in parts}
        gone = {row["slide"] for row in rows if row["teacher"] == column} - kept
        drop = f"mpp = {mpp} AND teacher = '{column}' AND {among(sorted(gone))}"
        change = Change(drop=drop)
        put_files(lake.store, rel, {fragment: path}, change.properties())
        committer.apply([change])


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The rows of a column on one slide, and the number of their first row in the fragment."""

    slide: int
    row_start: int
    column_rows: pa.Table


def _undamaged(
    table: lance.LanceDataset,
    column: str,
    rows: Sequence[dict[str, Any]],
    fragment: int,
    damaged: set[int],
) -> Iterator[_Part]:
    """Yield a column's values in a fragment that match the catalog, slide after slide."""
    column_rows = {row["slide"]: row for row in rows if row["teacher"] == column}
    table_fragment = table.get_fragment(fragment)
    live = 0  # rows before this slide that are not deleted: those are what Lance counts
    tiles = sorted((row for row in rows if row["teacher"] is None), key=lambda r: r["row_start"])
    for row in tiles:
        if row["slide"] in column_rows and row["slide"] not in damaged:
            scanner = table_fragment.scanner(columns=[column], offset=live, limit=row["tiles"])
            slide_rows = scanner.to_table()
            if column_crc32(slide_rows, column) == column_rows[row["slide"]]["crc32"]:
                yield _Part(slide=row["slide"], row_start=row["row_start"], column_rows=slide_rows)
        live += row["tiles"]


def _with_nulls_between(parts: Sequence[_Part], rows: int, field: pa.Field) -> Iterator[pa.Array]:
    """Yield a fragment's column in row order as arrays, with nulls between the parts."""
    at = 0
    for part in parts:
        if part.row_start > at:
            yield pa.nulls(part.row_start - at, field.type)
        yield from part.column_rows.cast(pa.schema([field])).column(0).chunks
        at = part.row_start + part.column_rows.num_rows
    if rows > at:
        yield pa.nulls(rows - at, field.type)
