"""Events of several kinds: the one of interest, and those after which it can no longer happen."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cluster import counted
from downstream.cohorts.cohort_errors import CohortError
from downstream.cohorts.outcomes import survival_labels


@dataclass(frozen=True, kw_only=True)
class CausesOfPatients:
    """Times and kinds of events.

    Attributes:
        times: [P] times to the first event of any kind, or to the end of follow-up.
        cause: [P] 0 for censored, 1 for the event of interest, then the competing ones.
        names: names of the causes 1, 2, ..., the event of interest first.
    """

    times: NDArray[np.float64]
    cause: NDArray[np.int64]
    names: tuple[str, ...]


def competing_labels(
    patients: pl.DataFrame, time: str, event: str, *, cause: str, censored: str = "0"
) -> CausesOfPatients:
    """Return the times of patients and the kinds of their events.

    Args:
        patients: one row per patient.
        time: column of the time to the first event, or to the end of follow-up.
        event: column of the kind of event; numbers are compared as text, 1 and 1.0 alike.
        cause: value of the event of interest.
        censored: value of patients without an event. All other values are competing events.

    Raises:
        CohortError: No patient with the event of interest, or none with another; a censored value
            that is the cause; times that `survival_labels` refuses.
    """
    kinds = _as_text(patients[event])
    present = sorted(set(kinds))
    others = tuple(name for name in present if name not in {cause, censored})
    if cause == censored or cause not in present or not others:
        shown = ", ".join(present[:8])
        msg = (
            f"cause {cause!r}, censored {censored!r}, and {event!r} holds {shown}; "
            "name by --cause the event of interest, by --censored the value without an event; a "
            "column with one kind of event needs neither"
        )
        raise CohortError(msg)
    names = (cause, *others)
    index = {name: at for at, name in enumerate(names, start=1)} | {censored: 0}
    flags = patients.with_columns(pl.Series(event, [int(kind == cause) for kind in kinds]))
    times, _ = survival_labels(flags, time, event, event_means="event")
    return CausesOfPatients(
        times=times, cause=np.array([index[kind] for kind in kinds]), names=names
    )


def competing_note(causes: tuple[str, ...], counts: tuple[int, ...], patients: int) -> str:
    """Return a sentence on what a cause-specific analysis says, and how many events compete.

    Args:
        causes: names of the causes, the event of interest first.
        counts: patients with each of them.
        patients: patients in all.
    """
    others = ", ".join(
        f"{count} {name!r}" for name, count in zip(causes[1:], counts[1:], strict=True)
    )
    return (
        f"competing events: {others} of {counted(patients, 'patient')}; risks are of the "
        f"cause-specific hazard of {causes[0]!r}, under which a patient with another event is "
        "censored there, and S(t) is what it would be if there were no others: how many have the "
        "event is told by the cumulative incidence"
    )


def _as_text(column: pl.Series) -> list[str]:
    """Return the values of a column as text, whole numbers without a fraction."""
    if column.dtype == pl.Boolean:
        column = column.cast(pl.Int8)
    if column.dtype.is_float() and bool((column == column.floor()).all()):
        column = column.cast(pl.Int64)
    return [str(cell) for cell in column.cast(pl.String).to_list()]
