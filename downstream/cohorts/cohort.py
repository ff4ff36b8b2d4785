"""Labels joined with a lake's slides: one row per patient, because a patient is what a fold holds.

Nothing is dropped silently: labels without a slide and slides without a label are listed,
contradictions are errors.
"""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from cluster import counted
from downstream.cohorts.cohort_errors import CohortError, listing
from downstream.cohorts.label_tables import LabelTable, load_labels, read_labels
from downstream.cohorts.patients import settle_patients
from downstream.cohorts.pending import pending_note
from downstream.cohorts.slide_names import match_notes, match_slides, refuse_near_slides

__all__ = [
    "Cohort",
    "CohortError",
    "LabelTable",
    "keep_slides",
    "listing",
    "load_labels",
    "patient_table",
    "read_labels",
    "with_external",
]


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Labelled patients whose slides are in the lake.

    Attributes:
        patients: one row per patient, sorted by `patient_id`: `patient_id` (str), `slide_ids`
            (sorted list of str, never empty), the label columns of the study (never
            null) and those that were to be carried along (null where not known).
        missing: labelled ids that are not used: without a ready slide in the lake (slide ids where
            the labels name slides, patient ids otherwise), with some but not all of several label
            columns, and labelled slides without tiles; sorted.
        surplus: ready slides of the lake that have no label, sorted slide ids.
        notes: sentences on what was recognised, matched or left out.
        distinct_ids: whether ids that differ by case, blanks or Unicode form only are different.
        facts: further facts on the patients, for the result of a run, as JSON.
        site_of: site of each patient; empty where no site was asked for.
        external: patients of another table, all of whom are tested; empty without one.
    """

    patients: pl.DataFrame
    missing: list[str]
    surplus: list[str]
    notes: tuple[str, ...] = ()
    distinct_ids: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    site_of: Mapping[str, str] = field(default_factory=dict)
    external: frozenset[str] = frozenset()

    @property
    def slide_ids(self) -> list[str]:
        """Return the ids of all slides in use, sorted."""
        return sorted(self.patients["slide_ids"].explode().to_list())


# Long by its docstring.
def patient_table(
    slides: pl.LazyFrame,
    labels: pl.DataFrame | LabelTable,
    columns: Sequence[str],
    *,
    extra_columns: Sequence[str] = (),
    numbers: Sequence[str] = (),
    covariates: Sequence[str] = (),
) -> Cohort:
    """Join labels with the ready slides of a lake: one row per patient.

    Labels that name slides are joined by slide, others by patient. The patient comes from the
    labels, else from the lake; it is never guessed, since a patient split over two folds leaks. A
    row in which all columns are null is a row without a label; one with some of them is left out
    and listed, because no loss here takes half a label.

    Args:
        slides: `slide_id`, `patient_id` (nullable) and `state` per slide, as
            `Lake.slides()` returns them.
        labels: labels from `load_labels` or `read_labels`.
        columns: label columns to keep, for example `["time", "event"]`.
        extra_columns: further columns to keep, such as the site; they may be null. They are read as
            text: 0012 is not 12.
        numbers: columns of `columns` that must be numbers; the type of the others is detected.
        covariates: further columns to keep, which may be null, of whatever type they look like.

    Raises:
        CohortError: An unknown column, a cell that cannot be read, a null or contradictory id,
            conflicting labels within a patient, or no patient left. Also ids, sites and classes
            that differ from another by case, blanks or Unicode form only, unless the labels have
            `distinct_ids`.
    """
    texts = [c for c in extra_columns if c not in columns and c not in covariates]
    kept_columns = [*texts, *covariates]
    labelled = _labelled_slides(slides, labels, columns, texts, numbers, covariates)
    _refuse_conflicts(labelled.rows, [*columns, *kept_columns])
    return Cohort(
        patients=_rows_by_patient(labelled.rows, columns, kept_columns),
        missing=labelled.missing,
        surplus=labelled.surplus,
        notes=labelled.notes,
        distinct_ids=labelled.distinct_ids,
    )


@dataclass(frozen=True, kw_only=True)
class LabelledSlides:
    """Ready slides of a lake with their labels and patients.

    Attributes:
        rows: `slide_id`, `patient_id` and the label columns, a row per slide and label.
        missing: see `Cohort.missing`.
        surplus: see `Cohort.surplus`.
        notes: see `Cohort.notes`.
        distinct_ids: see `Cohort.distinct_ids`.
    """

    rows: pl.DataFrame
    missing: list[str]
    surplus: list[str]
    notes: tuple[str, ...]
    distinct_ids: bool


def slide_table(
    slides: pl.LazyFrame, labels: pl.DataFrame | LabelTable, column: str
) -> LabelledSlides:
    """Join one label with the ready slides of a lake: one row per slide.

    Slides of a patient may have different labels, as they may not in `patient_table`.

    Args:
        slides: see `patient_table`.
        labels: see `patient_table`.
        column: the label column.

    Raises:
        CohortError: As `patient_table` does; also for a slide with two labels.
    """
    labelled = _labelled_slides(slides, labels, [column], [], (), ())
    _refuse_conflicts(labelled.rows, [column], key="slide_id")
    rows = labelled.rows.select("slide_id", "patient_id", column).unique().sort("slide_id")
    return replace(labelled, rows=rows)


def _labelled_slides(
    slides: pl.LazyFrame,
    labels: pl.DataFrame | LabelTable,
    columns: Sequence[str],
    texts: Sequence[str],
    numbers: Sequence[str],
    covariates: Sequence[str],
) -> LabelledSlides:
    """Return the labelled ready slides of a lake, each with its one patient."""
    table = _read_columns(labels, columns, texts, numbers, covariates)
    extra_columns = [*texts, *covariates]
    id_column = "slide_id" if "slide_id" in table.table.columns else "patient_id"
    rows, partial = _split_by_completeness(table.table, columns, extra_columns, id_column)
    lake_slides = slides.select("slide_id", "patient_id", "state").collect()
    notes = [*table.notes]
    if id_column == "slide_id":
        rows, match_notes = _with_lake_names(rows, lake_slides, distinct_ids=table.distinct_ids)
        notes += match_notes
    notes += _partial_notes(partial, columns, id_column)
    ready = lake_slides.filter(pl.col("state") == "ready").drop("state")
    joined = _join_slides(ready, rows, id_column, table, lake_slides["patient_id"])
    unplaced = _unplaced_patients(table.unplaced, columns)
    missing = sorted({*_ids_without_slide(rows, ready, id_column), *partial, *unplaced})
    notes += (pending := pending_note(lake_slides, rows[id_column], id_column))
    if joined.is_empty():
        _refuse_empty(missing, ready[id_column].drop_nulls().to_list(), id_column, pending)
    if unplaced:
        notes.append(
            f"{counted(len(unplaced), 'patient', 'are')} not in the slide table: "
            f"{listing(unplaced)}"
        )
    return LabelledSlides(
        rows=joined,
        missing=missing,
        surplus=sorted(set(ready["slide_id"]) - set(joined["slide_id"])),
        notes=tuple(notes),
        distinct_ids=table.distinct_ids,
    )


def _read_columns(
    labels: pl.DataFrame | LabelTable,
    columns: Sequence[str],
    extra_columns: Sequence[str],
    numbers: Sequence[str],
    covariates: Sequence[str] = (),
) -> LabelTable:
    """Return the labels with each column read as the type that the study needs."""
    table = labels if isinstance(labels, LabelTable) else _label_table(labels)
    _require_columns(table, [*columns, *extra_columns, *covariates])
    return table.read(
        {column: "numbers" if column in numbers else "values" for column in columns}
        | dict.fromkeys(extra_columns, "texts")
        | dict.fromkeys(covariates, "values")
    )


def _with_lake_names(
    rows: pl.DataFrame, lake_slides: pl.DataFrame, *, distinct_ids: bool
) -> tuple[pl.DataFrame, list[str]]:
    """Return the rows under the slide names of the lake, and notes on what was matched."""
    match = match_slides(rows["slide_id"], lake_slides["slide_id"])
    if not distinct_ids:
        refuse_near_slides(match, rows["slide_id"], lake_slides["slide_id"])
    renamed = pl.col("slide_id").replace(dict(match.slide_of))
    return rows.with_columns(renamed), match_notes(match)


def _partial_notes(partial: list[str], columns: Sequence[str], id_column: str) -> list[str]:
    """Return a note on the ids that have some of the labels and not all, if there are any."""
    if not partial:
        return []
    ids = counted(len(partial), id_column.removesuffix("_id"), "have")
    return [f"{ids} some but not all of {', '.join(columns)}, left out: {listing(partial)}"]


def _ids_without_slide(rows: pl.DataFrame, ready: pl.DataFrame, id_column: str) -> set[str]:
    """Return the labelled ids that no ready slide of the lake has."""
    return set(rows[id_column]) - set(ready[id_column].drop_nulls())


def with_external(cohort: Cohort, other: Cohort) -> Cohort:
    """Return a cohort with the patients of another table, who are all tested.

    Raises:
        CohortError: A patient or a slide is in both tables.
    """
    both = set(cohort.patients["patient_id"]) & set(other.patients["patient_id"])
    slides = set(cohort.slide_ids) & set(other.slide_ids)
    if both or slides:
        shared = sorted(both or slides)
        noun = "patient" if both else "slide"
        msg = (
            f"{counted(len(shared), noun, 'are')} both in the labels and in the table of test "
            f"patients: {listing(shared)}; take them out of one of the two"
        )
        raise CohortError(msg)
    columns = cohort.patients.columns
    return replace(
        cohort,
        patients=pl.concat(
            [cohort.patients, other.patients.select(columns)], how="vertical_relaxed"
        ).sort("patient_id"),
        missing=sorted({*cohort.missing, *other.missing}),
        surplus=sorted(set(cohort.surplus) & set(other.surplus)),
        notes=(
            *cohort.notes,
            *other.notes,
            (
                f"external validation: {counted(other.patients.height, 'patient')} of the other "
                f"table are tested by models of {counted(cohort.patients.height, 'patient')}"
            ),
        ),
        external=frozenset(other.patients["patient_id"]),
    )


def keep_slides(cohort: Cohort, usable: Collection[str]) -> Cohort:
    """Return the cohort without unusable slides, which are added to `missing`.

    A patient left without a slide leaves the cohort.

    Args:
        cohort: a cohort from `patient_table`.
        usable: ids of the slides that have tiles.

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
    external = cohort.external & set(patients["patient_id"])
    return replace(cohort, patients=patients, missing=missing, external=external)


def _label_table(table: pl.DataFrame) -> LabelTable:
    """Return a plain table as a `LabelTable`, without notes."""
    return LabelTable(table=table, unplaced=table.head(0), notes=(), sha256="")


def _require_columns(labels: LabelTable, columns: Sequence[str]) -> None:
    """Raise CohortError for a missing label column, naming the existing columns."""
    ids = {"slide_id", "patient_id"}
    allowed = [column for column in labels.table.columns if column not in ids]
    for column in columns:
        if column in ids or not labels.has(column):
            close = difflib.get_close_matches(column, allowed, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            msg = f"the labels have no column {column!r}; they have {', '.join(allowed)}{hint}"
            raise CohortError(msg)


def _split_by_completeness(
    labels: pl.DataFrame, label_columns: Sequence[str], extra_columns: Sequence[str], id_column: str
) -> tuple[pl.DataFrame, list[str]]:
    """Return the rows that carry all labels, once each, and the ids of those that carry some."""
    ids = [column for column in ("slide_id", "patient_id") if column in labels.columns]
    # a table that went through pandas has NaN where it means null
    floats = pl.col(
        [c for c in (*label_columns, *extra_columns) if labels[c].dtype.is_float()]
    ).fill_nan(None)
    rows = (
        labels.select(*ids, *label_columns, *extra_columns)
        .with_columns(floats)
        .unique(maintain_order=True)
    )
    labelled = rows.drop_nulls(list(label_columns))
    partly_labelled = rows.filter(pl.any_horizontal(pl.col(label_columns).is_not_null()))
    nulls = partly_labelled[id_column].null_count()
    if nulls:
        msg = f"{nulls} labelled rows have no {id_column}; fill it in or remove the rows"
        raise CohortError(msg)
    return labelled, sorted(set(partly_labelled[id_column]) - set(labelled[id_column]))


def _unplaced_patients(rows: pl.DataFrame, columns: Sequence[str]) -> list[str]:
    """Return labelled patients whom the slide table does not name."""
    if rows.is_empty():
        return []
    return sorted(set(_split_by_completeness(rows, columns, (), "patient_id")[0]["patient_id"]))


def _rows_by_patient(
    joined: pl.DataFrame, columns: Sequence[str], extra_columns: Sequence[str]
) -> pl.DataFrame:
    """Return one row per patient, with its sorted slides and its labels."""
    slides = pl.col("slide_id").unique().sort().alias("slide_ids")
    firsts = [pl.col(column).first() for column in columns]
    # of what may be null, the value that is known
    carried = [pl.col(column).drop_nulls().first() for column in extra_columns]
    return joined.group_by("patient_id").agg(slides, *firsts, *carried).sort("patient_id")


def _join_slides(
    ready: pl.DataFrame,
    rows: pl.DataFrame,
    id_column: str,
    table: LabelTable,
    lake_patients: pl.Series,
) -> pl.DataFrame:
    """Return labelled ready slides, each with its one patient."""
    from featurestore.usertables import refuse_near_others, tables_raise

    if id_column == "slide_id":
        lake = ready.rename({"patient_id": "patient_id_lake"})
        joined = lake.join(rows, on="slide_id", how="inner")
    else:
        if not table.distinct_ids:
            patients = lake_patients.drop_nulls().unique()
            with tables_raise(CohortError):
                refuse_near_others(
                    rows["patient_id"], patients, "patients of the labels", "the lake"
                )
        joined = ready.join(rows, on="patient_id", how="inner")
    return settle_patients(
        joined,
        from_labels=table.patients_from == "labels",
        distinct_ids=table.distinct_ids,
    )


def _refuse_conflicts(
    joined: pl.DataFrame, columns: Sequence[str], *, key: str = "patient_id"
) -> None:
    """Refuse a patient, or a slide, whose rows disagree about a label."""
    noun = key.removesuffix("_id")
    for column in columns:
        labels_of = joined.group_by(key).agg(pl.col(column).drop_nulls().unique().sort())
        torn = labels_of.filter(pl.col(column).list.len() > 1).sort(key)
        if not torn.is_empty():
            conflicts = [f"{name}: {labels}" for name, labels in torn.iter_rows()]
            shown = listing(conflicts)
            msg = (
                f"{counted(len(conflicts), noun, 'have')} conflicting values of {column!r}: "
                f"{shown}; "
                f"a {noun} has one label, correct them or choose another column"
            )
            raise CohortError(msg)


def _refuse_empty(
    missing: list[str], lake_ids: list[str], id_column: str, pending: list[str]
) -> None:
    """Raise CohortError if no label matches a slide, showing ids of both sides."""
    if pending:
        msg = f"no labelled slide is ready: {pending[0]}"
        raise CohortError(msg)
    msg = (
        f"no labelled {id_column} is a ready slide's of this lake: labels have "
        f"{listing(missing) or 'none'}; the lake has {listing(sorted(set(lake_ids))) or 'none'}; "
        "make the ids equal"
    )
    raise CohortError(msg)
