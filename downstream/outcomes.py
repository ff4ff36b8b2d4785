"""From a cohort's label columns to the arrays that models and metrics take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from downstream.cohort import CohortError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MIN_CLASSES = 2


def class_labels(patients: pl.DataFrame, target: str) -> tuple[list[str], NDArray[np.int64]]:
    """Classes and the class index of every patient.

    Classes are sorted (numbers by value, text by alphabet). With two classes the last one is the
    positive one, so 1 over 0, true over false, "tumour" over "normal".

    Args:
        patients: One row per patient.
        target: The label column.

    Returns:
        Class names, and int64[P] indices into them.

    Raises:
        CohortError: Fewer than two classes.

    >>> class_labels(pl.DataFrame({"grade": [10, 9, 10]}), "grade")
    (['9', '10'], array([1, 0, 1]))
    """
    values = patients[target]
    classes = values.unique().sort()
    if len(classes) < _MIN_CLASSES:
        msg = f"{target!r} is {classes[0]!r} for every patient; classification needs two values"
        raise CohortError(msg)
    index = {value: number for number, value in enumerate(classes)}
    return [str(value) for value in classes], np.array([index[v] for v in values], dtype=np.int64)


def survival_labels(
    patients: pl.DataFrame, time: str, event: str
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Follow-up times and event flags.

    Args:
        patients: One row per patient.
        time: Column of the time to the event or to the end of follow-up, in any one unit, at least
            0.
        event: Column that says whether the event was seen: 1/true, or 0/false for censored.

    Returns:
        float64[P] times and bool[P] events.

    Raises:
        CohortError: Times that are no numbers, negative or not finite; events other than 0 and 1;
            no event at all.
    """
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
    return times, _events(patients[event])


def _events(values: pl.Series) -> NDArray[np.bool_]:
    """Event flags from booleans or from the numbers 0 and 1.

    Raises:
        CohortError: Anything else, or no event at all.
    """
    numbers = values.cast(pl.Int8) if values.dtype == pl.Boolean else values
    found = numbers.unique().sort().to_list()
    if not set(found) <= {0, 1}:
        msg = f"{values.name!r} holds {found[:5]}; write 1 for an event that was seen, 0 for none"
        raise CohortError(msg)
    if 1 not in found:
        msg = f"{values.name!r} is 0 for all {len(values)} patients; survival needs events"
        raise CohortError(msg)
    events: NDArray[np.bool_] = numbers.to_numpy() == 1
    return events
