"""Label tables as people have them: CSV, TSV, XLSX, Parquet; of CLAM, STAMP and Patho-Bench.

Columns that name patients and slides are recognised, and two that might are an error that asks.
Ids stay text: a patient "007" is not the number 7.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import polars as pl

from downstream.cohorts.table_files import (
    CohortError,
    listing,
    missing_words,
    parse_table,
    read_label_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    Path = str | PathLike[str]

Id = Literal["patient_id", "slide_id"]
NAMES: dict[Id, tuple[str, ...]] = {
    "patient_id": ("patient_id", "case_id", "patient"),
    "slide_id": ("slide_id", "filename"),
}
"""What columns that hold ids are called, in lower case: ours, CLAM's and Patho-Bench's, STAMP's."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """A label table with its ids under our names.

    Attributes:
        table: `slide_id` and/or `patient_id` (text), then the other columns as they are.
        unplaced: Rows of patients whom a slide table does not name; no column `slide_id`.
        notes: What was recognised or left out, a sentence each.
        sha256: Of the files' bytes.
    """

    table: pl.DataFrame
    unplaced: pl.DataFrame
    notes: tuple[str, ...]
    sha256: str


def load_labels(
    path: Path,
    *,
    slides: Path | None = None,
    patient_column: str | None = None,
    slide_column: str | None = None,
) -> Labels:
    """Labels of slides or patients, with what was recognised.

    Args:
        path: Local path or URI of the table: CLAM's, Patho-Bench's, STAMP's clini table, or any
            with a column for the slide and/or the patient (`NAMES`, in upper or lower case).
        slides: A table of patients' slides, such as STAMP's; only its two ids are read.
        patient_column: Column of the patient, where it has another name or several have one.
        slide_column: Column of the slide, likewise; of the slide table if there is one.

    Raises:
        CohortError: No such file, another format, no id column, or several that may be it.
    """
    content = read_label_bytes(path)
    of_slide = None if slides is not None else slide_column
    table, notes = _identified(content, str(path), patient_column, of_slide)
    digest = hashlib.sha256(content)
    unplaced = table.head(0)
    if slides is not None:
        more = read_label_bytes(slides)
        digest.update(more)
        table, unplaced, told = _with_slides(table, more, slides, patient_column, slide_column)
        notes += told
    return Labels(table=table, unplaced=unplaced, notes=notes, sha256=digest.hexdigest())


def read_labels(
    path: Path,
    *,
    slides: Path | None = None,
    patient_column: str | None = None,
    slide_column: str | None = None,
) -> pl.DataFrame:
    """The table of `load_labels` alone."""
    return load_labels(
        path, slides=slides, patient_column=patient_column, slide_column=slide_column
    ).table


def parse_labels(content: bytes, *, name: str) -> pl.DataFrame:
    """A label table from the bytes of a file; the ending of its name picks the format.

    Raises:
        CohortError: Another ending, an unreadable file, no id column, or several that may be it.
    """
    return _identified(content, name, None, None)[0]


def with_ids(
    table: pl.DataFrame, *, name: str, patient_column: str | None, slide_column: str | None
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """A table with the columns that hold ids first, under our names and as text.

    Raises:
        CohortError: A column that was named is not there, or several may be the one.
    """
    given: dict[Id, str | None] = {"slide_id": slide_column, "patient_id": patient_column}
    found = {key: _column(table, key, column, name) for key, column in given.items()}
    theirs = {column: ours for ours, column in found.items() if column is not None}
    notes = [f"{name}: {ours} is column {column!r}" for column, ours in theirs.items()
             if column != ours]  # fmt: skip
    # another column that has our name would stand beside the one that was chosen
    hidden = [ours for column, ours in theirs.items() if ours in table.columns and column != ours]
    notes += [f"{name}: column {column!r} is left out, another was named" for column in hidden]
    ids = [_as_text(table[column]).alias(ours) for column, ours in theirs.items()]
    return table.drop(*hidden, *theirs, strict=False).select(*ids, pl.all()), tuple(notes)


def id_test(*given: str | None) -> Callable[[str], bool]:
    """Whether a column of some name holds ids: it is called so, or was given as one."""
    known = {name for names in NAMES.values() for name in names}
    return lambda column: column.lower() in known or column in given


def _identified(
    content: bytes, name: str, patient_column: str | None, slide_column: str | None
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """A table with at least one column of ids."""
    table, read = parse_table(content, name=name, is_text=id_test(patient_column, slide_column))
    found, told = with_ids(
        table, name=name, patient_column=patient_column, slide_column=slide_column
    )
    if not set(NAMES) & set(found.columns):
        msg = (
            f"labels {name!r} have columns {table.columns}; none is called as ids are "
            f"({', '.join(n for names in NAMES.values() for n in names)}): name the one that holds "
            "them by slide_column or patient_column"
        )
        raise CohortError(msg)
    return found, (*told, *read)


def _with_slides(
    labels: pl.DataFrame,
    content: bytes,
    slides: Path,
    patient_column: str | None,
    slide_column: str | None,
) -> tuple[pl.DataFrame, pl.DataFrame, tuple[str, ...]]:
    """Labels of patients joined with the slides that a table gives them; who has none apart."""
    name = str(slides)
    is_text = id_test(patient_column, slide_column)
    table, _ = parse_table(content, name=name, is_text=is_text)
    patient = patient_column if patient_column in table.columns else None
    files, notes = with_ids(table, name=name, patient_column=patient, slide_column=slide_column)
    if not set(NAMES) <= set(files.columns) or "patient_id" not in labels.columns:
        msg = (
            f"slide table {name!r} has columns {table.columns}, the labels {labels.columns}; a "
            "slide table names slides and patients, and labels with one name patients"
        )
        raise CohortError(msg)
    labels = labels.drop("slide_id", strict=False)
    files = files.select("slide_id", "patient_id").drop_nulls().unique(maintain_order=True)
    joined = files.join(labels, on="patient_id", how="inner", maintain_order="left")
    unplaced = labels.join(files, on="patient_id", how="anti")
    strangers = sorted(set(files["patient_id"]) - set(labels["patient_id"]))
    if strangers:
        notes += (f"{name}: {len(strangers)} patients have no labels: {listing(strangers)}",)
    return joined, unplaced, notes


def _column(table: pl.DataFrame, key: Id, given: str | None, name: str) -> str | None:
    """The column that holds these ids, or None."""
    option = f"{key.removesuffix('_id')}_column"
    if given is not None:
        if given not in table.columns:
            msg = f"{option}={given!r}, but {name!r} has columns {table.columns}"
            raise CohortError(msg)
        return given
    found = [column for column in table.columns if column.lower() in NAMES[key]]
    if len(found) > 1:
        msg = (
            f"{name!r} has the columns {', '.join(found)}, each of which may hold the {key}; "
            f"choose one by {option}={found[0]!r}"
        )
        raise CohortError(msg)
    return next(iter(found), None)


def _as_text(ids: pl.Series) -> pl.Series:
    """Ids as text; whole numbers that a spreadsheet or pandas made floats are whole again."""
    if ids.dtype.is_float() and ids.drop_nulls().map_elements(float.is_integer, pl.Boolean).all():
        ids = ids.fill_nan(None).cast(pl.Int64)
    return ids.cast(pl.String).replace(dict.fromkeys(missing_words()))
