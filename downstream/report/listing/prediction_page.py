"""The page of predictions by a run's models: a row a patient, measures where labels are known."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from downstream.report.attention_maps import replace_file
from downstream.report.listing.listing import (
    Entry,
    Listing,
    number_entry,
    script_policy,
    text_entry,
)
from downstream.report.report_page import render
from downstream.report.run_tables import shown_name

if TYPE_CHECKING:
    from downstream.kept.predict_patients import PatientPredictions

MOST_ROWS = 3000
_SCORES = {"survival": "risk (higher is worse)", "regression": "predicted number"}


def write_prediction_page(
    predictions: "PatientPredictions",
    path: Path,
    *,
    csv_name: str,
    measures: Mapping[str, Mapping[str, Any]] | None = None,
    truth: Mapping[str, str] | None = None,
) -> None:
    """Write a page with a sortable row per patient.

    Args:
        predictions: predictions of one arm.
        path: the page.
        csv_name: name of the CSV beside it, which holds every row.
        measures: measures of `measured_predictions`; none without labels.
        truth: label of each patient who has one.
    """
    page = render(
        "predictions.html.j2",
        predictions=predictions,
        policy=script_policy(),
        csv_name=csv_name,
        measures=measure_rows(measures or {}),
        table=prediction_listing(predictions, truth or {}),
    )
    replace_file(path, page.encode())


def measure_rows(measures: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the measures of each group as rows of a table."""
    return [
        {"group": group, "patients": part["patients"], "name": shown_name(name), **one}
        for group, part in measures.items()
        for name, one in part["measures"].items()
    ]


def prediction_listing(predictions: "PatientPredictions", truth: Mapping[str, str]) -> Listing:
    """Return the rows of predictions, a patient each."""
    rows = predictions.rows
    columns = _columns(predictions, with_truth=bool(truth))
    shown = rows.head(MOST_ROWS).to_dicts()
    return Listing(
        heads=tuple(head for head, _ in columns),
        numeric=tuple(is_number for _, is_number in columns),
        rows=tuple(tuple(_cells(predictions, row, truth)) for row in shown),
        left_out=max(0, rows.height - MOST_ROWS),
    )


def _columns(predictions: "PatientPredictions", *, with_truth: bool) -> list[tuple[str, bool]]:
    """Return the heads of the columns, and whether each is of numbers."""
    rows, task = predictions.rows, predictions.task
    classes = "predicted" in rows.columns
    named = [("patient", False), ("slides", True), ("in the run", False)]
    named += [("student trained on", False)] if "student_trained" in rows.columns else []
    named += [("label", False)] if with_truth else []
    named += [("predicted", False), ("answered", False)] if classes else []
    named += [(_SCORES.get(task, "score"), True)] if "score" in rows.columns else []
    return named + [(name.removeprefix("p_"), True) for name in _share_names(rows.columns)]


def _share_names(columns: Sequence[str]) -> list[str]:
    """Return the columns of probabilities."""
    return [name for name in columns if name.startswith("p_")]


def _cells(
    predictions: "PatientPredictions", row: Mapping[str, Any], truth: Mapping[str, str]
) -> list[Entry]:
    """Return the cells of a patient's row."""
    patient = row["patient_id"]
    tested_text = f"tested in fold {row['fold']}" if row["seen"] else "new"
    cells = [
        text_entry(patient),
        number_entry(len(row["slide_ids"]), digits=0),
        text_entry(tested_text),
    ]
    if "student_trained" in row:
        cells.append(text_entry(_yes_no(row["student_trained"])))
    label = truth.get(patient)
    if truth:
        cells.append(Entry(text="\N{EN DASH}") if label is None else text_entry(label))
    if "predicted" in row:
        wrong = label is not None and label != row["predicted"]
        name = str(row["predicted"])
        cells += [Entry(text=name, key=name, is_wrong=wrong), text_entry(_yes_no(row["answered"]))]
    if "score" in row:
        limits = f"{row['low']:.3f} to {row['high']:.3f} of {row['models']} models"
        cells.append(number_entry(row["score"], sub=limits))
    return cells + [number_entry(row[name]) for name in _share_names(list(row))]


def _yes_no(flag: bool | None) -> str:  # noqa: FBT001 - the cell of a table
    """Return a flag in words."""
    return "not known" if flag is None else "yes" if flag else "no"
