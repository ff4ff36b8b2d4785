"""What `repair` makes again from what is whole, and how it takes out no more than is damaged."""

from collections.abc import Sequence
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from lance import LanceOperation

from featurestore import lance_features as features
from featurestore.checksums import features_crc32, with_row_crc32
from featurestore.damage import Damage
from featurestore.keep.lance_roots import add_checksums, record_roots
from featurestore.keep.roots import ROOTS_FILE, readable_roots
from featurestore.lake import Lake
from featurestore.lance_columns import ColumnFile, ColumnWriter
from featurestore.lance_commit import Committer
from featurestore.lance_ledger import Change, among
from featurestore.lance_rows import Ranges
from featurestore.lance_tables import commit, make_index, open_table, without_rows, write_fragment
from featurestore.schema import CATALOG, PENDING, SLIDES, SLIDES_SCHEMA, features_table

INDEXED = {SLIDES: "slide_id", CATALOG: "slide"}
DAMAGED_ROW = "its row in slides was damaged; ingest it again"


def count_rows(lake: Lake, mpp: float, fragment: int, slides: Sequence[int]) -> int:
    """Count the rows of some slides in a fragment."""
    part = lake.table(features_table(mpp)).get_fragment(fragment)
    return int(part.count_rows(among(slides))) if part else 0


def mend_roots(lake: Lake, paths: Sequence[str]) -> None:
    """Write `lake.json` again from `roots.json`, or that from a lake that was found whole."""
    roots = readable_roots(lake.store)
    if "lake.json" in paths and roots is not None and roots.lake_json:
        lake.store.write_bytes("lake.json", roots.lake_json.encode())
    if ROOTS_FILE in paths:
        with lake.committer.exclusive(recover=False):
            record_roots(lake.store, lake.config)
            add_checksums(lake.store, lake.config)


def rebuild_table_index(lake: Lake, rel: str) -> None:
    """Make the index of `slides` or `catalog` again; take that of a features table out.

    Searching without an index is exact and slower; `slidelake search --build-index` makes one.
    """
    committer = lake.committer
    # The damaged index keeps every other writer out, so nothing is finished before it is mended.
    with committer.exclusive(recover=False):
        if rel in INDEXED:
            make_index(lake.store, rel, INDEXED[rel], replace=True)
        else:
            table = open_table(lake.store, rel)
            for index in table.describe_indices():
                table.drop_index(index.name)
        committer.finish()
        committer.apply([])


# ---------------------------------------------------------------------- rows of slides


def put_slide_rows_again(lake: Lake, damage: Sequence[Damage]) -> list[str]:
    """Write damaged rows of `slides` again with nothing in them but number and name, as pending.

    Which of a row's values is the damaged one can't be known, so none is kept; the catalog, which
    is whole, says which number has which name. The next ingest fills the row; the slide's tiles
    and features stay as they are.

    Returns:
        Names of the slides.
    """
    committer = lake.committer
    with committer.exclusive():
        names = _names_in_catalog(lake)
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


def _names_in_catalog(lake: Lake) -> dict[int, str]:
    table = lake.refreshed().table(CATALOG)
    rows = table.to_table(columns=["slide", "slide_id"], filter="teacher IS NULL")
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


def drop_features(lake: Lake, mpp: float, teacher: str, fragment: int, slides: set[int]) -> None:
    """Take a teacher's features of some slides out of a fragment; those of all others stay.

    A column of a fragment is one file: it is written again with the undamaged slides' own bytes
    and nulls for the others. Where nothing undamaged is left the column goes as a whole.
    """
    committer = lake.committer
    with committer.exclusive():
        rows = committer.ledger.rows_in(mpp, fragment)
        theirs = [row for row in rows if row["teacher"] == teacher]
        kept = [row for row in theirs if row["slide"] not in slides]
        file = _without_slides(lake.refreshed(), mpp, kept, fragment) if kept else None
        if file is None:
            committer.apply([features.drop_column(lake.store, mpp, teacher, [fragment])])
            return
        gone = sorted({row["slide"] for row in theirs} - set(file.crc32))
        drop = f"mpp = {mpp} AND teacher = '{teacher}' AND {among(gone)}"
        committer.apply([_replace_column(committer, mpp, file, Change(drop=drop))])


def _without_slides(
    lake: Lake, mpp: float, kept: Sequence[dict[str, Any]], fragment: int
) -> ColumnFile | None:
    """The column of a fragment with these slides' features only; None if none is whole."""
    table = lake.table(features_table(mpp))
    teacher = kept[0]["teacher"]
    field = table.schema.field(teacher)
    reader = lake.row_reader(mpp=mpp)
    with ColumnWriter(lake.store, mpp, field, fragment) as writer:
        for row in sorted(kept, key=lambda row: int(row["row_start"])):
            place = Ranges(
                fragment=np.array([fragment]),
                start=np.array([row["row_start"]]),
                rows=np.array([row["tiles"]]),
            )
            stored = reader.read(place, [teacher]).by_teacher[teacher]
            if features_crc32(stored) == row["crc32"]:
                writer.skip(row["row_start"] - writer.rows)
                writer.copy(row["slide"], stored)
        writer.skip(table.get_fragment(fragment).physical_rows - writer.rows)
    file = writer.finish()
    return file if file.crc32 else None


def _replace_column(committer: Committer, mpp: float, file: ColumnFile, change: Change) -> Change:
    rel = features_table(mpp)
    table = open_table(committer.store, rel)
    data_file = lance.fragment.DataFile.create(table, file.path)
    group = LanceOperation.DataReplacementGroup(file.fragment, data_file)
    commit(
        committer.store,
        rel,
        LanceOperation.DataReplacement([group]),
        read_version=table.version,
        properties=change.properties(),
    )
    return change
