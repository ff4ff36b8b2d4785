"""Labels joined with a lake's slides: one row per patient, because a patient is what a fold holds.

Nothing is dropped silently: labels without a slide and slides without a label are listed,
contradictions are errors.
"""

from __future__ import annotations

import difflib
import io
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from os import PathLike

_SHOWN = 10
"""Most ids that one error message lists."""


class CohortError(ValueError):
    """Labels that cannot be read, contradict themselves, or do not meet the lake."""


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Labelled patients whose slides are in the lake.

    Attributes:
        patients: One row per patient, sorted by `patient_id`: `patient_id` (str), `slide_ids`
            (sorted list of str, never empty) and the label columns that were asked for (never
            null).
        missing: Labelled ids that have no ready slide in the lake (slide ids where the labels name
            slides, patient ids otherwise), and labelled slides that have no tile; sorted.
        surplus: Ready slides of the lake that have no label, sorted slide ids.
    """

    patients: pl.DataFrame
    missing: list[str]
    surplus: list[str]

    @property
    def slide_ids(self) -> list[str]:
        """Every slide in use, sorted."""
        return sorted(self.patients["slide_ids"].explode().to_list())


def read_label_bytes(path: str | PathLike[str]) -> bytes:
    """The bytes of a label file, local or at any URI that fsspec knows.

    Raises:
        CohortError: The file does not exist.
    """
    import fsspec

    try:
        with fsspec.open(str(path), "rb") as file:
            content: bytes = file.read()
    except FileNotFoundError as error:
        msg = f"there is no label file at {str(path)!r}; give a CSV or Parquet file"
        raise CohortError(msg) from error
    return content


def parse_labels(content: bytes, *, name: str) -> pl.DataFrame:
    """Label table from the bytes of a CSV or Parquet file.

    Ids stay strings: a patient "007" is not the number 7.

    Args:
        content: The file.
        name: Its name; the ending picks the format.

    Raises:
        CohortError: Another ending, an unreadable file, or neither a `slide_id` nor a
            `patient_id` column.
    """
    suffix = PurePosixPath(name).suffix.lower()
    ids = {"slide_id": pl.String, "patient_id": pl.String}
    try:
        if suffix == ".parquet":
            table = pl.read_parquet(io.BytesIO(content))
        elif suffix == ".csv":
            # infer_schema_length=None: a column whose first hundred rows look whole may hold 3.5
            # further down
            table = pl.read_csv(io.BytesIO(content), schema_overrides=ids, infer_schema_length=None)
        else:
            msg = f"labels {name!r} end in {suffix!r}; allowed are .csv and .parquet"
            raise CohortError(msg)
    except pl.exceptions.PolarsError as error:
        msg = f"labels {name!r} cannot be read as {suffix[1:]}: {error}"
        raise CohortError(msg) from error
    found = [column for column in ids if column in table.columns]
    if not found:
        msg = (
            f"labels {name!r} have columns {table.columns}; one must be slide_id or patient_id, "
            "rename the column that holds it"
        )
        raise CohortError(msg)
    return table.with_columns(pl.col(found).cast(pl.String))


def read_labels(path: str | PathLike[str]) -> pl.DataFrame:
    """Label table from a CSV or Parquet file with a `slide_id` and/or a `patient_id` column.

    Args:
        path: Local path or URI, ending in .csv or .parquet.

    Returns:
        The table; ids are strings, other columns keep the type they were read with.

    Raises:
        CohortError: No such file, another format, or no id column.
    """
    return parse_labels(read_label_bytes(path), name=str(path))


def patient_table(slides: pl.LazyFrame, labels: pl.DataFrame, columns: Sequence[str]) -> Cohort:
    """Join labels with the ready slides of a lake: one row per patient.

    Labels that name slides are joined by slide, others by patient. The patient comes from the
    labels, else from the lake; it is never guessed, since a patient split over two folds leaks. A
    row in which a column is null is a row without a label.

    Args:
        slides: `slide_id`, `patient_id` (nullable) and `state` per slide, as
            `Lake.slides()` gives them.
        labels: What `read_labels` returned.
        columns: Label columns to keep, for example `["time", "event"]`.

    Raises:
        CohortError: An unknown column, a null or contradictory id, conflicting labels within a
            patient, or no patient left.
    """
    _require_columns(labels, columns)
    by = "slide_id" if "slide_id" in labels.columns else "patient_id"
    labelled = _labelled(labels, columns, by)
    ready = slides.filter(pl.col("state") == "ready").select("slide_id", "patient_id").collect()
    joined = _join(ready, labelled, by)
    _refuse_unknown_patients(joined)
    _refuse_conflicts(joined, columns)
    missing = sorted(set(labelled[by]) - set(ready[by].drop_nulls()))
    surplus = sorted(set(ready["slide_id"]) - set(joined["slide_id"]))
    if joined.is_empty():
        _refuse_empty(missing, ready[by].drop_nulls().to_list(), by)
    firsts = [pl.col(column).first() for column in columns]
    patients = (
        joined.group_by("patient_id")
        .agg(pl.col("slide_id").unique().sort().alias("slide_ids"), *firsts)
        .sort("patient_id")
    )
    return Cohort(patients=patients, missing=missing, surplus=surplus)


def keep_slides(cohort: Cohort, usable: Collection[str]) -> Cohort:
    """The cohort without slides that cannot be used; they join `missing`.

    A patient left without a slide leaves the cohort.

    Args:
        cohort: What `patient_table` returned.
        usable: Slide ids, those that have tiles.

    Raises:
        CohortError: No patient is left.
    """
    unusable = sorted(set(cohort.slide_ids) - set(usable))
    if not unusable:
        return cohort
    kept = pl.col("slide_ids").list.eval(pl.element().filter(~pl.element().is_in(unusable)))
    patients = cohort.patients.with_columns(kept).filter(pl.col("slide_ids").list.len() > 0)
    if patients.is_empty():
        msg = f"no labelled slide has a tile: {listing(unusable)}; look at the tissue threshold"
        raise CohortError(msg)
    missing = sorted([*cohort.missing, *unusable])
    return Cohort(patients=patients, missing=missing, surplus=cohort.surplus)


def listing(ids: Sequence[str]) -> str:
    """Ids for a message, the first ten and how many more.

    >>> listing(["a", "b"])
    'a, b'
    """
    more = len(ids) - _SHOWN
    return ", ".join(ids[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _require_columns(labels: pl.DataFrame, columns: Sequence[str]) -> None:
    """Refuse a label column that is not there, naming those that are."""
    allowed = [column for column in labels.columns if column not in {"slide_id", "patient_id"}]
    for column in columns:
        if column not in allowed:
            close = difflib.get_close_matches(column, allowed, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            msg = f"the labels have no column {column!r}; they have {', '.join(allowed)}{hint}"
            raise CohortError(msg)


def _labelled(labels: pl.DataFrame, columns: Sequence[str], by: str) -> pl.DataFrame:
    """The rows that carry a label, once each, with the id columns they come with."""
    ids = [column for column in ("slide_id", "patient_id") if column in labels.columns]
    # a table that went through pandas has NaN where it means null
    floats = pl.col([c for c in columns if labels[c].dtype.is_float()]).fill_nan(None)
    rows = labels.select(*ids, *columns).with_columns(floats)
    rows = rows.drop_nulls(list(columns)).unique(maintain_order=True)
    nulls = rows[by].null_count()
    if nulls:
        msg = f"{nulls} labelled rows have no {by}; fill it in or remove the rows"
        raise CohortError(msg)
    return rows


def _join(ready: pl.DataFrame, labelled: pl.DataFrame, by: str) -> pl.DataFrame:
    """Ready slides with a label; `patient_id` from the labels if it is there, else the lake's."""
    joined = ready.join(labelled, on=by, how="inner", suffix="_label")
    if "patient_id_label" in joined.columns:
        patient = pl.coalesce("patient_id_label", "patient_id").alias("patient_id")
        joined = joined.with_columns(patient).drop("patient_id_label")
    return joined


def _refuse_unknown_patients(joined: pl.DataFrame) -> None:
    """Refuse slides without a patient, and slides that the labels give to two patients."""
    orphans = sorted(joined.filter(pl.col("patient_id").is_null())["slide_id"].unique())
    if orphans:
        msg = (
            f"{len(orphans)} labelled slides have no patient, neither in the labels nor in the "
            f"lake: {listing(orphans)}; add a patient_id column to the labels (equal to slide_id "
            "where every slide is a patient of its own)"
        )
        raise CohortError(msg)
    owners = joined.group_by("slide_id").agg(pl.col("patient_id").n_unique().alias("n"))
    shared = sorted(owners.filter(pl.col("n") > 1)["slide_id"])
    if shared:
        msg = (
            f"{len(shared)} slides belong to more than one patient: {listing(shared)}; "
            "correct patient_id in the labels"
        )
        raise CohortError(msg)


def _refuse_conflicts(joined: pl.DataFrame, columns: Sequence[str]) -> None:
    """Refuse a patient whose rows disagree about a label."""
    for column in columns:
        values = joined.group_by("patient_id").agg(pl.col(column).unique().sort())
        torn = values.filter(pl.col(column).list.len() > 1).sort("patient_id")
        if not torn.is_empty():
            which = [f"{patient}: {found}" for patient, found in torn.iter_rows()]
            msg = (
                f"{len(which)} patients have conflicting values of {column!r}: {listing(which)}; "
                "a patient has one label, correct them or choose another column"
            )
            raise CohortError(msg)


def _refuse_empty(missing: list[str], known: list[str], by: str) -> None:
    """Raise for a join without a match, showing both sides: mostly it is a suffix like .svs."""
    msg = (
        f"no labelled {by} is a ready slide's of this lake: labels have "
        f"{listing(missing) or 'none'}; the lake has {listing(sorted(set(known))) or 'none'}; "
        "make the ids equal"
    )
    raise CohortError(msg)
