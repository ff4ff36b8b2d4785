"""Label tables of users: of CLAM, STAMP and Patho-Bench, or with ids under our names.

Columns of patients and slides are recognised; if several columns could be it, an error lists them.
Files are read by `featurestore.usertables`, each column as the type that the study needs. That is
imported on use, since its package opens Lance, which takes time that a command's help does not
have.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Literal

import polars as pl

from cluster import counted
from downstream.cohorts.cohort_errors import CohortError, listing

if TYPE_CHECKING:
    from featurestore.usertables import Id, UserTable

Path = str | PathLike[str]


PatientsFrom = Literal["agree", "labels"]
"""Whose word counts on a slide's patient: both must agree, or the labels'."""
Reading = Literal["values", "texts", "numbers", "integers"]
"""What a column is read as: what it looks like, text to the letter, numbers, whole numbers."""

_ROW = "row of the label table"


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """A label table with its ids under our names.

    Attributes:
        table: `slide_id` and/or `patient_id` (text), then the other columns, types detected.
        unplaced: rows of patients that a slide table does not name; no column `slide_id`.
        notes: sentences on what was recognised or left out.
        sha256: hash of the files' bytes.
        distinct_ids: whether ids, sites and classes that differ by case, blanks or Unicode form
            only are different; else they are refused.
        patients_from: "labels" where the labels' patient counts, also where the lake knows another
            one; else ("agree") that is refused.
        source: the table as it was read; None if the labels come from elsewhere.
        places: for each row of `table`, its row in `source`.
    """

    table: pl.DataFrame
    unplaced: pl.DataFrame
    notes: tuple[str, ...]
    sha256: str
    distinct_ids: bool = False
    patients_from: PatientsFrom = "agree"
    source: "UserTable | None" = None
    places: pl.Series | None = None

    def read(self, columns: Mapping[str, Reading]) -> "LabelTable":
        """Return the labels with some columns read as the requested types.

        The columns get the requested names, also where the file writes them with other
        capitals or with blanks.

        Raises:
            CohortError: no such column, a cell that can't be read so (named by row and column), or
                texts that differ by case, blanks or Unicode form only.
        """
        from featurestore.usertables import refuse_near, tables_raise

        table = self.table
        for name, reading in columns.items():
            with tables_raise(CohortError):
                column = self._column(name)
                series = self._series(column, reading)
                if series.dtype == pl.String and not self.distinct_ids:
                    refuse_near(series.drop_nulls().unique(), self._column_description(column))
            if column != name and column in table.columns:
                table = table.rename({column: name})
            table = table.with_columns(series.alias(name))
        return replace(self, table=table)

    def has(self, name: str) -> bool:
        """Whether a column has this name, or one that differs by case or blanks only."""
        return name in self.table.columns or (self.source is not None and self.source.has(name))

    def _column(self, name: str) -> str:
        """Return the file's column for a requested name; columns of ids are not allowed."""
        if self.source is None or name in {"slide_id", "patient_id"}:
            return name
        return self.source.column(name)

    def _series(self, column: str, reading: Reading) -> pl.Series:
        """Return a column, read from the source again as the requested type."""
        if self.source is None or self.places is None or column not in self.source.columns:
            series = self.table[column]
            return series.cast(pl.String) if reading == "texts" else series
        read = {
            "values": self.source.values,
            "texts": self.source.texts,
            "numbers": self.source.numbers,
            "integers": self.source.integers,
        }
        return read[reading](column).gather(self.places)

    def _column_description(self, column: str) -> str:
        """Return the name of a column and its table, for messages."""
        name = "" if self.source is None else f"table {self.source.name!r}, "
        return f"{name}column {column!r}"


def load_labels(
    path: Path,
    *,
    slides: Path | None = None,
    patient_column: str | None = None,
    slide_column: str | None = None,
    distinct_ids: bool = False,
    patients_from: PatientsFrom = "agree",
) -> LabelTable:
    """Return the labels of slides or patients, with notes on the recognised columns.

    Args:
        path: local path or URI of the table: CLAM's, Patho-Bench's, STAMP's clini table, or any
            with a column for the slide and/or the patient (`ID_NAMES`, in capitals or not).
        slides: a table of patients' slides, such as STAMP's; only its two ids are read.
        patient_column: column of the patient, where it has another name or several have one.
        slide_column: column of the slide, where it has another name or several have one; of the
            slide table if there is one.
        distinct_ids: whether ids, sites and classes that differ by case, blanks or Unicode form
            only are different; else they are refused.
        patients_from: "labels" where the labels' patient counts, also where the lake knows another
            one; else ("agree") that is refused.

    Raises:
        CohortError: no such file, another format, no id column, several that may be it, or ids that
            differ by so little only.
    """
    from featurestore.usertables import parse_table, table_bytes, tables_raise

    with tables_raise(CohortError):
        content = table_bytes(path)
        source = parse_table(content, name=str(path))
        of_slide = None if slides is not None else slide_column
        table, notes = _with_ids(source, patient_column, of_slide, distinct=distinct_ids)
        _require_id(source, table)
        digest = hashlib.sha256(content)
        unplaced = table.head(0)
        if slides is not None:
            more = table_bytes(slides)
            digest.update(more)
            other = parse_table(more, name=str(slides))
            patient = patient_column if patient_column in other.columns else None
            files, file_notes = _with_ids(other, patient, slide_column, distinct=distinct_ids)
            table, unplaced, left_out = _with_slides(table, files, other, distinct=distinct_ids)
            notes += file_notes + left_out
    return LabelTable(
        table=table.drop(_ROW),
        unplaced=unplaced.drop(_ROW),
        notes=(*notes, *source.notes),
        sha256=digest.hexdigest(),
        distinct_ids=distinct_ids,
        patients_from=patients_from,
        source=source,
        places=table[_ROW],
    )


def read_labels(
    path: Path,
    *,
    slides: Path | None = None,
    patient_column: str | None = None,
    slide_column: str | None = None,
    distinct_ids: bool = False,
) -> pl.DataFrame:
    """Return the table of `load_labels` alone."""
    return load_labels(
        path,
        slides=slides,
        patient_column=patient_column,
        slide_column=slide_column,
        distinct_ids=distinct_ids,
    ).table


def _with_ids(
    source: "UserTable", patient_column: str | None, slide_column: str | None, *, distinct: bool
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Return a table whose first columns are the ids, under our names and as text, and notes.

    Raises:
        TableError: a column that was named is not there, several may be the one, or two ids differ
            by case, blanks or Unicode form only.
    """
    from featurestore.usertables import id_column

    named: dict[Id, str | None] = {"slide_id": slide_column, "patient_id": patient_column}
    column_of = {key: id_column(source, key, column) for key, column in named.items()}
    ids = {ours: column for ours, column in column_of.items() if column is not None}
    notes = [f"{source.name}: {ours} is column {column!r}" for ours, column in ids.items()
             if column != ours]  # fmt: skip
    # another column that has our name would stand beside the one that was chosen
    hidden = [ours for ours, column in ids.items() if ours in source.columns and column != ours]
    notes += [f"{source.name}: column {name!r} is left out, another was named" for name in hidden]
    columns = [source.ids(column, distinct=distinct).alias(ours) for ours, column in ids.items()]
    rest = source.frame().drop(*hidden, *ids.values(), strict=False)
    table = pl.DataFrame([*columns, *rest.iter_columns()])
    return table.with_row_index(_ROW).select(pl.exclude(_ROW), _ROW), tuple(notes)


def _require_id(source: "UserTable", table: pl.DataFrame) -> None:
    """Raise CohortError for a table without a column of slide or patient ids."""
    from featurestore.usertables import ID_NAMES

    if set(ID_NAMES) & set(table.columns):
        return
    msg = (
        f"labels {source.name!r} have columns {list(source.columns)}; none is called as ids are "
        f"({', '.join(name for names in ID_NAMES.values() for name in names)}): name the one that "
        "holds them by --slide-column or --patient-column (slide_column, patient_column in Python)"
    )
    raise CohortError(msg)


def _with_slides(
    labels: pl.DataFrame, files: pl.DataFrame, source: "UserTable", *, distinct: bool
) -> tuple[pl.DataFrame, pl.DataFrame, tuple[str, ...]]:
    """Return labels joined with a slide table, the rows without slides, and notes."""
    from featurestore.usertables import ID_NAMES, refuse_near

    if not set(ID_NAMES) <= set(files.columns) or "patient_id" not in labels.columns:
        msg = (
            f"slide table {source.name!r} has columns {list(source.columns)}, the labels "
            f"{labels.columns[:-1]}; a slide table names slides and patients, and labels with one "
            "name patients"
        )
        raise CohortError(msg)
    labels = labels.drop("slide_id", strict=False)
    files = files.select("slide_id", "patient_id").drop_nulls().unique(maintain_order=True)
    if not distinct:
        both = [*files["patient_id"], *labels["patient_id"].drop_nulls()]
        refuse_near(both, f"patients of the labels and of {source.name!r}")
    joined = files.join(labels, on="patient_id", how="inner", maintain_order="left")
    unplaced = labels.join(files, on="patient_id", how="anti")
    strangers = sorted(set(files["patient_id"]) - set(labels["patient_id"]))
    if not strangers:
        return joined, unplaced, ()
    note = (
        f"{source.name}: {counted(len(strangers), 'patient', 'have')} no labels: "
        f"{listing(strangers)}"
    )
    return joined, unplaced, (note,)
