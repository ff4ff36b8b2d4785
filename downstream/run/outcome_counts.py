"""Who is in a study: patients of each class, events and follow-up, and who is never tested."""

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster import counted
from downstream.cohorts.cohort_errors import listing
from downstream.cohorts.competing import competing_note
from downstream.run.study import outcomes

if TYPE_CHECKING:
    from downstream.run.study import Study

#: Texts that tables write where a value is missing, and that no reader takes for empty.
_MISSING = re.compile(
    r"\W*(unknown|not (available|provided|reported|known|applicable|evaluated|done)|missing|none|"
    r"pending|discrepancy|unspecified|indeterminate|cannot be assessed|nan?|null|tbd|[-.?/_]+)\W*",
    re.IGNORECASE,
)


def outcome_counts(study: "Study") -> dict[str, Any]:
    """Return the outcomes of a study's patients in numbers, as JSON.

    Returns:
        `tested`, the number of patients with a test prediction; for classes and labels `patients`
        by name; for survival `events` and `median_follow_up` (by the reverse Kaplan-Meier curve, in
        the unit of the times; None where fewer than half are followed up that long) and, of
        competing events, `competing`, the patients with each other event by name; for a number its
        `least`, `median` and `most`.
    """
    values_PK = outcomes(study.patients)
    tested = {"tested": len({patient for split in study.splits for patient in split.test})}
    if study.task == "survival":
        times_P, events_P = values_PK[:, 0], values_PK[:, 1] == 1
        # any event ends the follow-up as it was meant to end, and is no loss to follow-up
        any_event_P = values_PK[:, -1] > 0
        followed = median_follow_up(times_P, any_event_P)
        counts = {**tested, "events": int(events_P.sum()), "median_follow_up": followed}
        return counts | ({"competing": _competing(study)} if study.causes else {})
    if study.task == "regression":
        least, median, most = np.quantile(values_PK[:, 0], [0, 0.5, 1]).tolist()
        return {**tested, "least": least, "median": median, "most": most}
    if study.task == "multilabel":
        of_class = values_PK.sum(axis=0)
    else:
        of_class = np.bincount(values_PK[:, 0].astype(np.int64), minlength=len(study.classes))
    return {**tested, "patients": dict(zip(study.classes, map(int, of_class), strict=True))}


def _competing(study: "Study") -> dict[str, int]:
    """Return the patients with each competing event, by name."""
    counts = np.bincount(
        outcomes(study.patients)[:, 2].astype(np.int64), minlength=len(study.causes) + 1
    )
    return dict(zip(study.causes[1:], map(int, counts[2:]), strict=True))


def median_follow_up(times_P: np.ndarray[Any, Any], events_P: np.ndarray[Any, Any]) -> float | None:
    """Return the median follow-up by the reverse Kaplan-Meier curve, None if it is not reached.

    Source: Schemper and Smith 1996, "A note on quantifying follow-up in studies of failure time".
    """
    from sksurv.nonparametric import kaplan_meier_estimator

    if events_P.all():
        return None
    at, followed = kaplan_meier_estimator(~events_P, times_P)
    reached = at[followed <= 0.5]
    return float(reached[0]) if len(reached) else None


def outcome_notes(study: "Study", *, is_external: bool = False) -> tuple[str, ...]:
    """Return sentences on patients who are never tested and on classes that mean "missing".

    Args:
        study: the run.
        is_external: whether all patients of another table are tested; the others never are.
    """
    notes = []
    tested = {patient for split in study.splits for patient in split.test}
    untested = sorted({patient.patient_id for patient in study.patients} - tested)
    if untested and not is_external:
        notes.append(
            f"{len(untested)} of {counted(len(study.patients), 'patient')} in no test part, and so "
            f"not measured: {listing(untested)}"
        )
    if study.causes:
        counts = outcome_counts(study)
        events = (counts["events"], *counts["competing"].values())
        notes.append(competing_note(study.causes, events, len(study.patients)))
    if study.task in {"binary", "multiclass"}:
        notes += [
            f"class {name!r} reads like a missing label, and is a class here; empty these cells to "
            "leave the patients out"
            for name in study.classes
            if _MISSING.fullmatch(name)
        ]
    return tuple(notes)
