"""Arrays of outcomes, for models and metrics, from a cohort's label columns.

Shape letters: P patients, C labels.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cluster import counted
from downstream.cohorts.cohort import CohortError, listing

if TYPE_CHECKING:
    from downstream.cohorts.cohort import Cohort

EventMeans = Literal["auto", "event", "censored"]
TaskKind = Literal["binary", "multiclass", "multilabel", "regression"]
MOST_CLASSES = 20
"""More different whole numbers than this are taken for a measurement."""
_MIN_CLASSES = 2
#: Words of column names by which 1 is a patient who has not had the event.
_OPPOSITE = re.compile(
    r"(?<!un)(?<!non)(?<!not[_ -])censor\w*|(?<![a-z])cens(?![a-z])|alive|living|surviv(?:ed|or)",
    re.I,
)
_TCGA = re.compile(r"TCGA-([A-Z0-9]{2})-")


def class_labels(patients: pl.DataFrame, target: str) -> tuple[list[str], NDArray[np.int64]]:
    """Return the names of the classes, and the class index of every patient.

    Classes are sorted (numbers by value, text by alphabet). With two classes the last one is the
    positive one, so 1 over 0, true over false, "tumour" over "normal".

    Args:
        patients: one row per patient.
        target: the label column.

    Returns:
        Class names, and int64[P] indices into them.

    Raises:
        CohortError: Fewer than two classes.

    >>> class_labels(pl.DataFrame({"grade": [10, 9, 10]}), "grade")
    (['9', '10'], array([1, 0, 1]))
    """
    labels = patients[target]
    classes = labels.unique().sort()
    if len(classes) < _MIN_CLASSES:
        msg = f"{target!r} is {classes[0]!r} for every patient; classification needs two values"
        raise CohortError(msg)
    index = {label: number for number, label in enumerate(classes)}
    return [str(label) for label in classes], np.array([index[v] for v in labels], dtype=np.int64)


def refuse_near_numbers(patients: pl.DataFrame, column: str) -> None:
    """Refuse a column of numbers that a few cells such as `>90` turn into text.

    Raises:
        CohortError: At most a tenth of the cells are no numbers; names the first of them.
    """
    texts = patients[column]
    if texts.dtype != pl.String:
        return
    is_number = texts.cast(pl.Float64, strict=False).is_not_null()
    others = patients.filter(~is_number)
    many = texts.filter(is_number).n_unique() > _MIN_CLASSES
    if many and 0 < others.height <= max(1, patients.height // 10):
        patient, cell = others.select("patient_id", column).row(0)
        msg = (
            f"{column!r} is {cell!r} for patient {patient}, and a number for "
            f"{patients.height - others.height} of {patients.height} patients; write a number "
            "there or empty the cell, or say that they are classes by --task multiclass"
        )
        raise CohortError(msg)


def guess_task(column: pl.Series) -> TaskKind:
    """Return the task that fits a column's values; users can always name another.

    Text and booleans are classes. Numbers are classes if all are whole and at most 20 differ;
    with fractions, or with more, they are a regression. Nulls are ignored.

    >>> [guess_task(pl.Series(v)) for v in ([0, 1], ["a", "b", "c"], [0.5, 1], list(range(21)))]
    ['binary', 'multiclass', 'regression', 'regression']
    """
    labels = column.drop_nulls()
    different = labels.n_unique()
    if labels.dtype.is_numeric():
        numbers = labels.cast(pl.Float64)
        if different > MOST_CLASSES or not bool((numbers == numbers.floor()).all()):
            return "regression"
    return "binary" if different <= _MIN_CLASSES else "multiclass"


def multilabel_labels(
    patients: pl.DataFrame, columns: Sequence[str]
) -> tuple[list[str], NDArray[np.int64]]:
    """Return the names and the 0/1 values of labels that do not exclude each other.

    Args:
        patients: one row per patient.
        columns: label columns of 1/true and 0/false.

    Returns:
        The columns, and int64[P, C] of 0 and 1.

    Raises:
        CohortError: No column, one named twice, other values, or a label that all patients have, or
            none.

    >>> multilabel_labels(pl.DataFrame({"a": [1, 0], "b": [False, True]}), ["a", "b"])[1].tolist()
    [[1, 0], [0, 1]]
    """
    if not columns or len(set(columns)) < len(columns):
        msg = f"label columns {list(columns)}; name at least one, each once"
        raise CohortError(msg)
    for column in columns:
        distinct = _booleans_as_numbers(patients[column]).unique().sort().to_list()
        if not set(distinct) <= {0, 1}:
            msg = f"{column!r} holds {distinct[:5]}; write 1 for a label that is there, 0 for none"
            raise CohortError(msg)
        if len(distinct) < _MIN_CLASSES:
            msg = (
                f"{column!r} is {distinct[0]} for all {counted(len(patients), 'patient')}; leave "
                "it out"
            )
            raise CohortError(msg)
    labels_PC = [
        _booleans_as_numbers(patients[column]).to_numpy().astype(np.int64) for column in columns
    ]
    return list(columns), np.stack(labels_PC, axis=1)


def regression_labels(patients: pl.DataFrame, column: str) -> NDArray[np.float64]:
    """Return the numbers to predict, one per patient, float64[P].

    Args:
        patients: one row per patient.
        column: the label column.

    Raises:
        CohortError: Values that are no numbers or not finite, or all the same.
    """
    if not patients[column].dtype.is_numeric():
        msg = f"{column!r} holds for example {patients[column][0]!r}; a regression needs numbers"
        raise CohortError(msg)
    numbers = patients[column].cast(pl.Float64).to_numpy()
    if not bool(np.isfinite(numbers).all()):
        at = int(np.flatnonzero(~np.isfinite(numbers))[0])
        msg = f"{column!r} is {numbers[at]} for patient {patients['patient_id'][at]}; "
        msg += "correct it or leave the cell empty"
        raise CohortError(msg)
    if len(np.unique(numbers)) < _MIN_CLASSES:
        msg = (
            f"{column!r} is {numbers[0]} for all {counted(len(numbers), 'patient')}; nothing to "
            "predict"
        )
        raise CohortError(msg)
    return numbers


def site_of(patients: Sequence[str], cohort: "Cohort", column: str) -> list[str]:
    """Return the site where each patient was treated or scanned, for external validation by site.

    Args:
        patients: ids of the patients.
        cohort: a cohort that carries the column (`extra_columns` of `patient_table`).
        column: a label column; or `tcga` for the second part of a TCGA barcode, its tissue source
            site.

    Raises:
        CohortError: Patients without a site, or with ids that are no barcodes.
    """
    if column == "tcga":
        return sites_of_barcodes(patients)
    if column not in cohort.patients.columns:
        msg = f"the cohort has no column {column!r}; it has {', '.join(cohort.patients.columns)}"
        raise CohortError(msg)
    site_of_patient = dict(
        cohort.patients.select("patient_id", pl.col(column).cast(pl.String)).iter_rows()
    )
    lacking = sorted(patient for patient in patients if site_of_patient.get(patient) is None)
    if lacking:
        msg = (
            f"{counted(len(lacking), 'patient', 'have')} no site in {column!r}: "
            f"{listing(lacking)}; fill it in"
        )
        raise CohortError(msg)
    return [str(site_of_patient[patient]) for patient in patients]


def sites_of_barcodes(patients: Sequence[str]) -> list[str]:
    """Return the tissue source site in the TCGA barcode of each patient.

    Raises:
        CohortError: Ids that are no barcodes.

    >>> sites_of_barcodes(["TCGA-A1-0001", "TCGA-B2-0001"])
    ['A1', 'B2']
    """
    codes = {patient: _TCGA.match(patient) for patient in patients}
    others = sorted(patient for patient, code in codes.items() if code is None)
    if others:
        msg = (
            f"site 'tcga', but {counted(len(others), 'patient', 'have')} no TCGA barcode: "
            f"{listing(others)}"
        )
        raise CohortError(msg)
    return [code[1] for patient in patients if (code := codes[patient])]


def survival_labels(
    patients: pl.DataFrame, time: str, event: str, *, event_means: EventMeans = "auto"
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the follow-up time and the event flag of every patient.

    Args:
        patients: one row per patient.
        time: column of the time to the event or to the end of follow-up, in any one unit, at least
            0.
        event: column of whether the event was seen: 1/true, or 0/false for censored.
        event_means: what 1 means in that column: "event" or "censored"; "auto" is "event", and
            refuses a column whose name says the opposite, such as `censorship` or `alive`.

    Returns:
        float64[P] times and bool[P] events.

    Raises:
        CohortError: Times that are no numbers, negative or not finite; events other than 0 and 1;
            no event at all; a column whose name says that 1 is no event.
    """
    if event_means == "auto" and (word := _OPPOSITE.search(event)):
        msg = (
            f"column {event!r}: its name says {word[0]!r}, so that 1 is a patient without the "
            "event, as in tables of MCAT and SurvPath; say what 1 means by --event-means censored, "
            "or --event-means event (event_means in Python)"
        )
        raise CohortError(msg)
    if not patients[time].dtype.is_numeric():
        msg = f"{time!r} holds for example {patients[time][0]!r}; a time is a number, 0 or more"
        raise CohortError(msg)
    times = patients[time].cast(pl.Float64).to_numpy()
    if not bool(np.all(np.isfinite(times) & (times >= 0))):
        bad = patients.filter(~(pl.col(time).cast(pl.Float64).is_finite() & (pl.col(time) >= 0)))
        msg = (
            f"{time!r} is {bad[time][0]} for patient {bad['patient_id'][0]}; "
            "a time is finite and at least 0, correct it or take the patient out"
        )
        raise CohortError(msg)
    return times, _event_flags(patients[event], positive=0 if event_means == "censored" else 1)


def _event_flags(column: pl.Series, *, positive: int) -> NDArray[np.bool_]:
    """Return event flags from booleans or from the numbers 0 and 1, of which one is the event.

    Raises:
        CohortError: Anything else, or no event at all.
    """
    numbers = _booleans_as_numbers(column)
    distinct = numbers.unique().sort().to_list()
    if not set(distinct) <= {0, 1}:
        msg = (
            f"{column.name!r} holds {distinct[:5]}; write 1 for an event that was seen, 0 for none"
        )
        raise CohortError(msg)
    if positive not in distinct:
        msg = (
            f"{column.name!r} is {1 - positive} for all {counted(len(column), 'patient')}; "
            "survival needs events"
        )
        raise CohortError(msg)
    events: NDArray[np.bool_] = numbers.to_numpy() == positive
    return events


def _booleans_as_numbers(column: pl.Series) -> pl.Series:
    """Return a column with booleans as 0 and 1; any other type is unchanged."""
    return column.cast(pl.Int8) if column.dtype == pl.Boolean else column
