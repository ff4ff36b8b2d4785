"""Annotations: users' own columns of tiles, slides or patients, each added in one commit."""

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl
import pyarrow as pa

from featurestore.annotations.matched_tiles import matched_tiles_of
from featurestore.annotations.user_table import AnnotationTable, lake_columns, user_table
from featurestore.commits.lance_edit import Edit, Work
from featurestore.commits.lance_ledger import Change
from featurestore.edits import lance_edits as edits
from featurestore.edits.lance_edits import NewColumn, add_columns, drop_columns
from featurestore.lake import Lake
from featurestore.messages import counted, listing
from featurestore.notebook.shown import Shown
from featurestore.storage.lock import writer_lease
from featurestore.tables import lance_annotations as registry
from featurestore.tables.annotation import PATIENT, TILE, Annotation, AnnotationError, check_name
from featurestore.tables.checksums import values_crc32
from featurestore.tables.lance_files import physical_column, write_column
from featurestore.tables.lance_tables import open_table
from featurestore.tables.schema import SLIDES, features_table

TCGA = re.compile(r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})(?:-.*)?", re.IGNORECASE)
ARROW = {pl.Int64: "int64", pl.Float64: "double", pl.Boolean: "bool", pl.String: "string"}


@dataclass(frozen=True, kw_only=True, repr=False)
class Annotated(Shown):
    """Result of adding an annotation to a lake.

    Attributes:
        annotation: the annotation as the lake has it now.
        version: version of the lake that has it.
        met: rows whose tile, slide or patient is in the lake.
        unmet: names of what the other rows describe. Rows of slides and patients are kept, for
            slides and patients that come later; rows of tiles are not.
        notes: notes for the user, a sentence each.
    """

    annotation: Annotation
    version: int
    met: int
    unmet: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()


def annotate(
    lake: Lake,
    table: pl.DataFrame,
    name: str,
    *,
    mpp: float | None = None,
    replace_old: bool = False,
    source: str = "",
) -> Annotated:
    """Add a user's table to a lake as an annotation.

    Args:
        lake: the lake at its newest version.
        table: table with `tile_id`, or `slide_id`, `x` and `y` (and `mpp`), or `slide_id`, or
            `patient_id`; and columns of numbers, text, dates, or true and false.
        name: name of the annotation.
        mpp: microns per pixel of the tiles that hold the places, where the lake has several.
        replace_old: replace the annotation of this name.
        source: name of the user's file, for people.

    Raises:
        AnnotationError: the name is taken or can't be one, or the table can't be an annotation.

    Examples:
        >>> lake = sl.open_lake("my-lake")
        >>> regions = pl.read_csv("regions.csv")  # slide_id, x, y, tissue
        >>> annotated = sl.annotate(lake, regions, "region", mpp=0.5)
        >>> annotated.met, annotated.unmet
        (312, [])
        >>> tiles = lake.refreshed().annotation("region")
        >>> tiles.group_by("tissue").len().sort("tissue").collect().rows()
        [('stroma', 156), ('tumour', 156)]
    """
    check_name(name)
    checked = user_table(table)
    lake.committer.recover()
    lake = lake.refreshed()
    _check_free(lake, name, replace_old=replace_old)
    with writer_lease(lake.store, f"annotate {name}"):
        work = _add_tile_columns if checked.level == TILE else _add_table
        return work(lake, checked, name, mpp, source)


def _check_free(lake: Lake, name: str, *, replace_old: bool) -> None:
    annotations = lake.annotations()
    older = annotations.get(name)
    if older is not None and not replace_old:
        msg = (
            f"'{name}' is an annotation of {older.level}s already ({counted(older.rows, 'row')} "
            f"of {older.source or 'a table'}): --replace puts the new one in its place, or "
            "give another name"
        )
        raise AnnotationError(msg)
    _refuse_taken(lake, [name], annotations)


def _refuse_taken(
    lake: Lake, columns: Sequence[str], annotations: Mapping[str, Annotation]
) -> None:
    """Refuse names of columns that the lake has and that belong to none of these annotations."""
    annotation_columns = {
        column
        for annotation in annotations.values()
        if annotation.level == TILE
        for column in annotation.columns.values()
    }
    for mpp in lake.config.mpps:
        other_columns = set(lake.table(features_table(mpp)).schema.names) - annotation_columns
        if taken := sorted(other_columns & set(columns)):
            msg = f"'{taken[0]}' is a column of the tiles at mpp {mpp} already; give another name"
            raise AnnotationError(msg)


# ---------------------------------------------------------------------- slides and patients


def _add_table(
    lake: Lake, table: AnnotationTable, name: str, mpp: float | None, source: str
) -> Annotated:
    """Write a table beside the slides and list it in `slides`; return the annotation."""
    key = f"{table.level}_id"
    slides = lake.slides().select("slide_id", "patient_id").collect()
    lake_ids = set(slides[key].drop_nulls())
    unmet = [key_value for key_value in table.frame[key] if key_value not in lake_ids]
    if len(unmet) == table.frame.height:
        msg = (
            f"none of the {counted(table.frame.height, table.level)} of the table is in "
            f"{lake.uri}: it "
            f"names {listing(unmet)}; the lake has {listing(sorted(lake_ids)) or 'none'}"
        )
        raise AnnotationError(msg)
    annotation = Annotation(
        name=name,
        level=table.level,
        columns=_plain_columns(table.value_columns),
        types={
            key_value: ARROW[type(table.frame[key_value].dtype)]
            for key_value in table.value_columns
        },
        rows=table.frame.height,
        mark=secrets.token_hex(8),
        source=source,
    )
    placed = registry.write_new_table(
        lake.store, annotation, table.frame.rename(dict(annotation.columns))
    )
    committer = lake.committer
    with committer.exclusive():
        older = lake.refreshed().annotations().get(name)
        committer.make(_put_table(placed, older))
    return _annotated(lake, placed, table, table.frame.height - len(unmet), unmet)


def _put_table(new: Annotation, older: Annotation | None) -> Edit:
    """Return the edit that lists a written table; it replaces an older annotation of tiles."""
    columns = [*older.columns.values()] if older is not None and older.level == TILE else []

    def steps(work: Work) -> Iterator[Change]:
        yield from drop_columns(columns).steps(work)
        tables = registry.tables_of(open_table(work.ledger.store, SLIDES))
        work.check()
        registry.put_tables(work.ledger.store, {**tables, new.name: new})

    return Edit(description={"annotate": new.name}, steps=steps)


def _plain_columns(user_names: Sequence[str]) -> dict[str, str]:
    """Return the names of columns in a Lance table, where a dot would name a field of a struct."""
    columns = {user_name: user_name.replace(".", "_") for user_name in user_names}
    names = list(columns.values())
    if same := next((n for n in names if names.count(n) > 1 or n in ("row_crc32",)), None):
        which = ", ".join(repr(user_name) for user_name in user_names if columns[user_name] == same)
        msg = f"columns {which} would be called '{same}' in the lake; rename them in the table"
        raise AnnotationError(msg)
    return columns


def _annotated(
    lake: Lake, annotation: Annotation, table: AnnotationTable, met: int, unmet: list[str]
) -> Annotated:
    return Annotated(
        annotation=annotation,
        version=lake.refreshed().version,
        met=met,
        unmet=unmet,
        notes=table.notes,
    )


# ---------------------------------------------------------------------- tiles


def _add_tile_columns(
    lake: Lake, table: AnnotationTable, name: str, mpp: float | None, source: str
) -> Annotated:
    """Write a file for each column and fragment, commit them, and return the annotation."""
    met, unmet = matched_tiles_of(lake, table, mpp)
    columns = lake_columns(name, table.value_columns)
    annotations = lake.annotations()
    _refuse_taken(
        lake, list(columns.values()), {name: annotations[name]} if name in annotations else {}
    )
    rows = sum(frame.height for frame in met.values())
    record = {"rows": rows, "source": source}
    mark = secrets.token_hex(8)
    writers = [_ColumnsWriter(lake, at, frame, name, mark, record) for at, frame in met.items()]
    new = [column for writer in writers for column in writer.columns(columns)]
    committer = lake.committer
    with committer.exclusive():
        check_unchanged(lake, new)
        committer.make(_put_columns(name, new, annotations.get(name)))
    annotation = lake.refreshed().annotations()[name]
    return _annotated(lake, annotation, table, table.frame.height - len(unmet), unmet)


def _put_columns(name: str, new: Sequence[NewColumn], older: Annotation | None) -> Edit:
    """Return the edit that puts written columns into the tables, replacing an older annotation."""
    columns = [*older.columns.values()] if older is not None and older.level == TILE else []
    edit = add_columns(name, new, columns)

    def steps(work: Work) -> Iterator[Change]:
        yield from edit.steps(work)
        tables = registry.tables_of(open_table(work.ledger.store, SLIDES))
        if tables.pop(name, None) is not None:
            work.check()
            registry.put_tables(work.ledger.store, tables)

    return replace(edit, steps=steps)


def check_unchanged(lake: Lake, columns: Sequence[NewColumn]) -> None:
    """Raise AnnotationError if a fragment has changed since its column file was written."""
    for column in columns:
        table = open_table(lake.store, features_table(column.mpp))
        for fragment, rows in column.rows.items():
            fragment_now = table.get_fragment(fragment)
            if fragment_now is None or fragment_now.physical_rows != rows:
                msg = f"{lake.uri} was compacted at the same time; run the same command again"
                raise AnnotationError(msg)


class _ColumnsWriter:
    """Writer of an annotation's columns at one mpp.

    Args:
        lake: the lake at the version in which the tiles were looked up.
        mpp: microns per pixel of the tiles.
        frame: `tile_id` and the values of each tile.
        name: name of the annotation.
        mark: mark of this annotation.
        record: `rows` and `source`, which go with each column.
    """

    def __init__(
        self,
        lake: Lake,
        mpp: float,
        frame: pl.DataFrame,
        name: str,
        mark: str,
        record: Mapping[str, Any],
    ) -> None:
        self.lake, self.mpp, self.frame = lake, mpp, frame
        self.name, self.mark, self.record = name, mark, record
        self.rel = features_table(mpp)
        self.table = lake.table(self.rel)
        numbers = (frame["tile_id"] // (1 << 40)).unique().to_list()
        tiles = lake.tiles_of(mpp=mpp).filter(pl.col("tiles") > 0)
        fragments = tiles.filter(pl.col("slide").is_in(numbers))["fragment"].unique()
        self.rows = tiles.filter(pl.col("fragment").is_in(fragments.implode()))

    def columns(self, names: Mapping[str, str]) -> list[NewColumn]:
        """Write the files of all columns, fragment after fragment; return the new columns.

        Args:
            names: names of the columns in the lake, by their names in the user's table.
        """
        new = {column: self._column(column, name) for column, name in names.items()}
        for (fragment,), rows in self.rows.group_by("fragment", maintain_order=True):
            self._fragment(int(str(fragment)), rows, new)
        return list(new.values())

    def _column(self, column: str, name: str) -> NewColumn:
        kind = pa.type_for_alias(ARROW[type(self.frame[column].dtype)])
        record = {**self.record, "column": column}
        field = registry.field_of(name, kind, annotation=self.name, mark=self.mark, record=record)
        return NewColumn(mpp=self.mpp, field=field)

    def _fragment(self, fragment: int, rows: pl.DataFrame, new: Mapping[str, NewColumn]) -> None:
        store = self.lake.store
        keys = physical_column(store, self.rel, self.table, fragment, "tile_id").to_numpy()
        met = pl.DataFrame({"tile_id": keys}).join(
            self.frame, on="tile_id", how="left", maintain_order="left"
        )
        for column, part in new.items():
            column_values = met[column].to_arrow().cast(part.field.type)
            part.files[fragment] = write_column(store, self.rel, part.field, [column_values])
            part.rows[fragment] = len(keys)
            for slide, start, tiles in rows.select("slide", "row_start", "tiles").iter_rows():
                part.crc32[slide] = values_crc32(column_values.slice(start, tiles).to_pylist())


# ---------------------------------------------------------------------- patients


@dataclass(frozen=True, kw_only=True)
class PatientsSet:
    """Numbers of slides whose patient changed and did not, and names of unknown slides."""

    version: int
    set: int
    same: int
    unmet: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()


def tcga_patients(lake: Lake) -> pl.DataFrame:
    """Return the slides named by a TCGA barcode, with patients: the barcode's first three parts.

    Raises:
        AnnotationError: no slide is named by a TCGA barcode.
    """
    slides = lake.slides().select("slide_id").collect()["slide_id"].to_list()
    patients = {name: match[1].upper() for name in slides if (match := TCGA.fullmatch(name))}
    if not patients:
        msg = (
            f"no slide of {lake.uri} is called by a TCGA barcode (TCGA-XX-XXXX-...); the first are "
            f"{listing(slides) or 'none'}"
        )
        raise AnnotationError(msg)
    return pl.DataFrame({"slide_id": list(patients), "patient_id": list(patients.values())})


def set_patients(lake: Lake, table: pl.DataFrame, *, replace_old: bool = False) -> PatientsSet:
    """Write patients of slides into the slides' rows, in one commit.

    Args:
        lake: the lake at its newest version.
        table: table with `slide_id` and `patient_id`.
        replace_old: replace the patient also where the lake has another one.

    Raises:
        AnnotationError: a column is missing, the lake has another patient, a slide has two,
            or no slide of the table is in the lake.
    """
    lacking = [name for name in ("slide_id", PATIENT + "_id") if name not in table.columns]
    if lacking:
        msg = f"patients need a table of slide_id and patient_id; {', '.join(lacking)} is not there"
        raise AnnotationError(msg)
    others = [name for name in table.columns if name not in ("slide_id", "patient_id")]
    pairs = table.select("slide_id", "patient_id")
    checked = user_table(pairs.drop_nulls("patient_id"))
    lake.committer.recover()
    lake = lake.refreshed()
    lake_patients = dict(lake.slides().select("slide_id", "patient_id").collect().iter_rows())
    new_patients = dict(checked.frame.cast(pl.String).iter_rows())
    todo = _changed_patients(lake, new_patients, lake_patients, replace_old=replace_old)
    if todo:
        committer = lake.committer
        with committer.exclusive():
            committer.make(edits.set_patients(todo))
    notes = [f"{listing(others)} left out: annotate with them under another name"] if others else []
    unmet = [name for name in new_patients if name not in lake_patients]
    return PatientsSet(
        version=lake.refreshed().version,
        set=len(todo),
        same=len(new_patients) - len(todo) - len(unmet),
        unmet=unmet,
        notes=tuple(notes),
    )


def _changed_patients(
    lake: Lake,
    new_patients: Mapping[str, str],
    lake_patients: Mapping[str, str | None],
    *,
    replace_old: bool,
) -> dict[str, str]:
    """Return the new patients of slides that have another patient, or none, in the lake."""
    patients = {slide: patient for slide, patient in new_patients.items() if slide in lake_patients}
    if not patients:
        msg = (
            f"none of the {counted(len(new_patients), 'slide')} of the table is in {lake.uri}: "
            "it names "
            f"{listing(list(new_patients))}; "
            f"the lake has {listing(sorted(lake_patients)) or 'none'}"
        )
        raise AnnotationError(msg)
    other = [s for s, patient in patients.items() if lake_patients[s] not in (None, patient)]
    if other and not replace_old:
        first = other[0]
        msg = (
            f"{counted(len(other), 'slide', 'have')} another patient in the lake: slide "
            f"'{first}' is of "
            f"'{lake_patients[first]}' there and of '{patients[first]}' in the table; "
            "--replace if it is meant"
        )
        raise AnnotationError(msg)
    return {
        slide: patient for slide, patient in patients.items() if lake_patients[slide] != patient
    }
