"""Predictions of a cell as rows of a table, and the attention of its test tiles.

Shape letters: P patients, M members.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from downstream.measures.thresholds import best_threshold

if TYPE_CHECKING:
    from downstream.cells.cell_patients import CellPatients
    from downstream.cells.member import Member
    from downstream.run.study import Cell, Patient

Floats = NDArray[np.float64]


Row = dict[str, Any]


def rows_of(cell: "Cell", patients: "CellPatients", members: Sequence["Member"]) -> list[Row]:
    """Return validation and test rows of a cell, as JSON."""
    test_ids = members[0].split.test
    test = _member_mean([member.test for member in members])
    high, curve = (
        _member_mean_if_all([m.high for m in members]),
        _member_mean_if_all([m.curve for m in members]),
    )
    validated = [(one, m, at) for m in members for at, one in enumerate(m.split.validation)]
    validation_outcomes = [m.validation[at] for _, m, at in validated]
    threshold = _threshold(cell, patients, [one for one, _, _ in validated], validation_outcomes)
    rows = [
        {
            "patient_id": one,
            "part": "test",
            **cell.key,
            **_outcome_columns(cell, patients.patient(one), test[at], threshold),
            **_survival_columns(cell, high, curve, at),
        }
        for at, one in enumerate(test_ids)
    ]
    for (one, member, at), outcome in zip(validated, validation_outcomes, strict=True):
        rows.append(
            {
                "patient_id": one,
                "part": "validation",
                **cell.key,
                **_outcome_columns(cell, patients.patient(one), outcome, threshold),
                **_survival_columns(cell, member.validation_high, member.validation_curve, at),
            }
        )
    return rows


def _member_mean(parts: Sequence[Floats]) -> Floats:
    """Return the mean of the members' probabilities, numbers or risks."""
    mean: Floats = np.mean(np.stack(parts), axis=0)
    return mean


def _member_mean_if_all(parts: Sequence[NDArray[Any] | None]) -> Floats | None:
    """Return the mean over members, or None if a member has no array; of flags, the share."""
    present_parts = [part.astype(np.float64) for part in parts if part is not None]
    return _member_mean(present_parts) if len(present_parts) == len(parts) else None


def _threshold(
    cell: "Cell",
    patients: "CellPatients",
    ids: Sequence[str],
    validation_outcomes: Sequence[Floats],
) -> float | None:
    """Return the threshold of class 1, chosen on validation patients; 0.5 without any."""
    if cell.study.task != "binary":
        return None
    label = patients.target(ids).astype(np.int64) if ids else np.empty(0, dtype=np.int64)
    return best_threshold(label, np.array([outcome[1] for outcome in validation_outcomes]))


def _outcome_columns(
    cell: "Cell",
    patient: "Patient",
    outcome: Any,  # noqa: ANN401 - a number, or an array of the task's form
    threshold: float | None,
) -> Row:
    """Return the label and the prediction of a patient, in the columns of the task."""
    study = cell.study
    if study.task == "survival":
        time, event, *cause = patient.outcome
        row = {"time": time, "event": event == 1, "risk": float(outcome)}
        return row | ({"cause": int(cause[0])} if cause else {})
    if study.task == "regression":
        return {"value": patient.outcome[0], "found": float(outcome)}
    if study.task == "multilabel":
        return {
            "labels": [int(label) for label in patient.outcome],
            "probabilities": outcome.tolist(),
        }
    return {
        "label": study.classes[int(patient.outcome[0])],
        "probabilities": outcome.tolist(),
        "score": float(outcome[1]) if study.task == "binary" else None,
        "threshold": threshold,
    }


def _survival_columns(
    cell: "Cell", high: NDArray[Any] | None, curve: Floats | None, at: int
) -> Row:
    """Return the risk group and the survival curve of one patient, in the columns of survival."""
    if cell.study.task != "survival":
        return {}
    return {
        "high": None if high is None else bool(high[at] > 0.5),
        "curve": None if curve is None else curve[at].tolist(),
    }


def attention_table(
    cell: "Cell", patients: "CellPatients", members: Sequence["Member"]
) -> pl.DataFrame:
    """Return the attention of test tiles, mean over members; a patient's tiles sum to 1."""
    parts = []
    for at, one in enumerate(members[0].split.test):
        bag = patients.bag(one)
        weights = np.mean([m.attention[at] for m in members if m.attention is not None], axis=0)
        slides = np.array(patients.patient(one).slide_ids)[bag.slide]
        parts.append(
            pl.DataFrame(
                {
                    "patient_id": [one] * len(weights),
                    "slide_id": slides.tolist(),
                    "tile_id": bag.tile_id,
                    "x": bag.x,
                    "y": bag.y,
                    "arm": [cell.arm.name] * len(weights),
                    "fold": np.full(len(weights), cell.fold, dtype=np.int32),
                    "attention": weights.astype(np.float32),
                }
            )
        )
    return pl.concat(parts)
