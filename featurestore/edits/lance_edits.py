"""The edits of a lake: slides, columns and tables dropped or renamed, patients set, columns added.

Each function returns an `Edit`, which a committer makes: see `lance_edit`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from featurestore.commits import lance_features as features
from featurestore.commits.cuts import Row
from featurestore.commits.lance_edit import Edit, Work
from featurestore.commits.lance_ledger import Change, Ledger, among
from featurestore.query.lance_nearest import index_name
from featurestore.tables import lance_annotations as registry
from featurestore.tables import lance_slide_encodings as encodings
from featurestore.tables.checksums import with_row_crc32
from featurestore.tables.lance_files import physical_column, put_files, write_column
from featurestore.tables.lance_tables import open_table
from featurestore.tables.schema import DROPPED, SLIDES, SLIDES_SCHEMA, features_table

ROWS_AT_ONCE = 1000  # rows of `slides` with their pictures, about 30 MB
FEW_SLIDES = 2000  # beyond this the catalog is read whole


# ---------------------------------------------------------------------- slides


def drop_slides(slides: Mapping[int, str]) -> Edit:
    """Delete all rows of slides; what is left of each is a row that keeps its number taken.

    Args:
        slides: names by number.
    """

    def steps(work: Work) -> Iterator[Change]:
        patients = _patients(work.ledger, list(slides))
        for mpp in work.ledger.config.mpps:
            work.check()
            features.drop_tiles(work.ledger, mpp, list(slides), work.group)
        rows = [
            {"slide": number, "slide_id": dropped_id(number, name), "state": DROPPED, "uri": ""}
            for number, name in slides.items()
        ]
        work.check()
        _put_by_number(work.ledger, rows)
        encodings.drop_slides(work.ledger.store, set(slides.values()), patients, work.check)
        yield from ()

    return Edit(description={"drop slides": sorted(slides.values())}, steps=steps)


def _patients(ledger: Ledger, numbers: Sequence[int]) -> set[str]:
    """Return the patients of slides; a slide without one is its own."""
    columns = ["slide_id", "patient_id"]
    table = open_table(ledger.store, SLIDES).to_table(columns=columns, filter=among(numbers))
    return {row["patient_id"] or row["slide_id"] for row in table.to_pylist()}


def drop_encodings(names: Sequence[str]) -> Edit:
    """Take slides' vectors of some names out of the lake, at all mpps."""

    def steps(work: Work) -> Iterator[Change]:
        kept = encodings.encodings_of(open_table(work.ledger.store, SLIDES))
        kept = {place: one for place, one in kept.items() if one.name not in names}
        work.check()
        encodings.put_encodings(work.ledger.store, kept)
        yield from ()

    return Edit(description={"drop encodings": sorted(names)}, steps=steps)


def dropped_id(number: int, slide_id: str) -> str:
    """Return the name of a dropped slide's row, which leaves the slide's own name free again."""
    return f"{DROPPED}:{number}:{slide_id}"


def rename_slide(number: int, old: str, new: str) -> Edit:
    """Rename a slide in its row, its tiles' rows, the catalog and the annotations."""

    def steps(work: Work) -> Iterator[Change]:
        ledger, of_slide = work.ledger, among([number])
        for mpp in ledger.config.mpps:
            rows = ledger.rows(f"mpp = {mpp} AND {of_slide}")
            for fragment in sorted({row["fragment"] for row in rows} - {-1}):
                work.check()
                _name_rows(ledger, mpp, fragment, number, new)
            if rows:
                renamed = [{**row, "slide_id": new} for row in rows]
                yield Change(drop=f"mpp = {mpp} AND {of_slide}", add=renamed)
        slide_rows = open_table(ledger.store, SLIDES).to_table(filter=of_slide).to_pylist()
        work.check()
        _put_by_number(ledger, [{**row, "slide_id": new} for row in slide_rows])
        registry.rename_slide(ledger.store, old, new, work.check)
        encodings.rename_slide(ledger.store, old, new, work.check)

    return Edit(description={"rename slide": [old, new]}, steps=steps)


def _name_rows(ledger: Ledger, mpp: float, fragment: int, slide: int, slide_id: str) -> None:
    """Write the names of a fragment's slides again; no other column of it is touched."""
    store, rel = ledger.store, features_table(mpp)
    table = open_table(store, rel)
    numbers = physical_column(store, rel, table, fragment, "slide").to_numpy()
    names = physical_column(store, rel, table, fragment, "slide_id").to_pylist()
    for at in np.flatnonzero(numbers == slide).tolist():
        names[at] = slide_id
    column = table.schema.field("slide_id")
    path = write_column(store, rel, column, [pa.array(names, column.type)])
    put_files(store, rel, {fragment: path})


def set_patients(patients: Mapping[str, str]) -> Edit:
    """Write the patients of slides into their rows, a thousand rows at a time.

    Args:
        patients: patients by slide_id.
    """

    def steps(work: Work) -> Iterator[Change]:
        store = work.ledger.store
        table = open_table(store, SLIDES).to_table(columns=["slide", "slide_id"])
        numbers = [row["slide"] for row in table.to_pylist() if row["slide_id"] in patients]
        for start in range(0, len(numbers), ROWS_AT_ONCE):
            some = among(numbers[start : start + ROWS_AT_ONCE])
            rows = open_table(store, SLIDES).to_table(filter=some).to_pylist()
            work.check()
            new = [{**row, "patient_id": patients[row["slide_id"]]} for row in rows]
            _put_by_number(work.ledger, new)
        yield from ()

    return Edit(description={"set patients": len(patients)}, steps=steps)


def _put_by_number(ledger: Ledger, rows: Sequence[Row]) -> None:
    """Replace the rows of `slides` with the same slide numbers."""
    if not rows:
        return
    slide_rows = [{name: row.get(name) for name in SLIDES_SCHEMA.names} for row in rows]
    table = with_row_crc32(pa.Table.from_pylist(slide_rows, schema=SLIDES_SCHEMA))
    merge = open_table(ledger.store, SLIDES).merge_insert("slide")
    merge.when_matched_update_all().execute(table)


# ---------------------------------------------------------------------- columns


def drop_columns(columns: Sequence[str]) -> Edit:
    """Remove columns from all features tables; their files stay until vacuum."""

    def steps(work: Work) -> Iterator[Change]:
        for mpp in work.ledger.config.mpps:
            for column in columns:
                yield _drop_column(work, mpp, column)

    return Edit(description={"drop columns": sorted(columns)}, steps=steps)


def _drop_column(work: Work, mpp: float, column: str) -> Change:
    """Remove a column and its index from a features table."""
    store, rel = work.ledger.store, features_table(mpp)
    if column in open_table(store, rel).schema.names:
        work.check()
        _drop_index(work.ledger, rel, column)
        open_table(store, rel).drop_columns([column])
    return Change(drop=f"mpp = {mpp} AND teacher = '{column}'")


def _drop_index(ledger: Ledger, rel: str, column: str) -> None:
    table = open_table(ledger.store, rel)
    if index_name(column) in {index.name for index in table.describe_indices()}:
        table.drop_index(index_name(column))


def rename_columns(columns: Mapping[str, str], *, annotation: str | None = None) -> Edit:
    """Rename columns in all features tables and the catalog.

    The index over a column is named after it, and is dropped.

    Args:
        columns: new names by old names.
        annotation: the new name of the columns' annotation, if they belong to one.
    """

    def steps(work: Work) -> Iterator[Change]:
        for mpp in work.ledger.config.mpps:
            for old, new in columns.items():
                _rename_column(work, mpp, old, new, annotation)
                of_column = f"mpp = {mpp} AND teacher = '{old}'"
                if rows := work.ledger.rows(of_column):
                    yield Change(drop=of_column, add=[{**row, "teacher": new} for row in rows])

    return Edit(description={"rename columns": dict(columns)}, steps=steps)


def _rename_column(work: Work, mpp: float, old: str, new: str, annotation: str | None) -> None:
    store, rel = work.ledger.store, features_table(mpp)
    if old not in open_table(store, rel).schema.names:
        return
    work.check()
    _drop_index(work.ledger, rel, old)
    open_table(store, rel).alter_columns({"path": old, "name": new})
    if annotation is not None:
        update = {new: {registry.NAME_KEY.decode(): annotation}}
        open_table(store, rel).update_field_metadata(update)


def drop_annotations(names: Sequence[str], columns: Sequence[str]) -> Edit:
    """Remove annotations from a lake; their tables stay until vacuum.

    Args:
        names: names of the annotations.
        columns: columns of tile annotations in the features tables.
    """

    def steps(work: Work) -> Iterator[Change]:
        yield from drop_columns(columns).steps(work)
        annotations = registry.tables_of(open_table(work.ledger.store, SLIDES))
        remaining = {
            name: annotation for name, annotation in annotations.items() if name not in names
        }
        if len(remaining) < len(annotations):
            work.check()
            registry.put_tables(work.ledger.store, remaining)

    return Edit(description={"drop annotations": sorted(names)}, steps=steps)


def rename_table(old: str, new: str) -> Edit:
    """Rename an annotation of slides or patients."""

    def steps(work: Work) -> Iterator[Change]:
        tables = registry.tables_of(open_table(work.ledger.store, SLIDES))
        tables[new] = replace(tables.pop(old), name=new)
        work.check()
        registry.put_tables(work.ledger.store, tables)
        yield from ()

    return Edit(description={"rename annotation": [old, new]}, steps=steps)


@dataclass(frozen=True, kw_only=True)
class NewColumn:
    """A column of an annotation at one mpp, with its written files.

    Attributes:
        mpp: microns per pixel of the features table.
        field: the column.
        files: names of its files, by fragment.
        rows: number of rows by fragment, deleted rows included; the files have as many.
        crc32: checksums of its values, by slide number.
    """

    mpp: float
    field: pa.Field
    files: dict[int, str] = field(default_factory=dict)
    rows: dict[int, int] = field(default_factory=dict)
    crc32: dict[int, int] = field(default_factory=dict)


def add_columns(name: str, columns: Sequence[NewColumn], instead_of: Sequence[str]) -> Edit:
    """Put the columns of an annotation into the tables; they replace older columns.

    Args:
        name: name of the annotation.
        columns: the new columns, with written files.
        instead_of: columns that go.
    """

    def steps(work: Work) -> Iterator[Change]:
        for mpp in work.ledger.config.mpps:
            for older in instead_of:
                yield _drop_column(work, mpp, older)
        for column in columns:
            store, rel = work.ledger.store, features_table(column.mpp)
            work.check()
            open_table(store, rel).add_columns([column.field])
            put_files(store, rel, column.files)
            yield Change(add=[*_rows_of(work.ledger, column)])

    return Edit(description={"annotate": name}, steps=steps)


def fill_columns(columns: Sequence[NewColumn]) -> Edit:
    """Put written columns into some fragments, in the place of what these hold of them.

    A column of the same name with other field metadata (of an earlier version) is dropped.

    Args:
        columns: the written columns, each at one mpp.
    """

    def steps(work: Work) -> Iterator[Change]:
        for column in columns:
            store, rel, name = work.ledger.store, features_table(column.mpp), column.field.name
            schema = open_table(store, rel).schema
            if name in schema.names and schema.field(name).metadata != column.field.metadata:
                yield _drop_column(work, column.mpp, name)
                schema = open_table(store, rel).schema
            work.check()
            if name not in schema.names:
                open_table(store, rel).add_columns([column.field])
            put_files(store, rel, column.files)
            fragments = ", ".join(str(fragment) for fragment in column.files)
            drop = f"mpp = {column.mpp} AND teacher = '{name}' AND fragment IN ({fragments})"
            yield Change(drop=drop, add=[*_rows_of(work.ledger, column)])

    names = sorted({column.field.name for column in columns})
    return Edit(description={"fill columns": names}, steps=steps)


def _rows_of(ledger: Ledger, column: NewColumn) -> Iterator[Row]:
    """Yield the catalog rows of a new column, at the places of its tiles."""
    slides = list(column.crc32)
    if len(slides) <= FEW_SLIDES:
        tiles = ledger.tiles_rows(column.mpp, slides)
    else:
        tiles = ledger.rows(f"teacher IS NULL AND mpp = {column.mpp}")
    names = ("slide", "slide_id", "mpp", "tiles", "fragment", "row_start")
    for row in tiles:
        if row["slide"] in column.crc32 and row["fragment"] in column.files:
            crc32 = column.crc32[row["slide"]]
            yield {**{n: row[n] for n in names}, "teacher": column.field.name, "crc32": crc32}
