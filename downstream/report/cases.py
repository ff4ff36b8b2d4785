"""The patients that a page shows, chosen by a rule that the page names, not by hand.

They are the surest right and the surest wrong patient of the first repetition and seed, by an arm
that has attention.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from downstream.report.kept_attention import first_rows

if TYPE_CHECKING:
    from downstream.report.finished_run import Run


@dataclass(frozen=True, kw_only=True)
class Case:
    """A patient that a page shows.

    Attributes:
        patient: id of the patient.
        fold: fold that tests the patient.
        title: short title.
        text: sentence with the rule, and the prediction for the patient.
    """

    patient: str
    fold: int
    title: str
    text: str


def cases(run: "Run", arm: str) -> list[Case]:
    """Return the patients of an arm that a page shows; the rule may match fewer than two."""
    by_task = {
        "binary": _positive_class_cases,
        "multiclass": _positive_class_cases,
        "multilabel": _label_cases,
        "regression": _regression_cases,
        "survival": _survival_cases,
    }
    return [one for one in by_task[run.task](run, first_rows(run, arm)) if one is not None]


def groups(run: "Run", arm: str) -> dict[str, list[str]]:
    """Return the patients of each group whose tiles are shown: classes, labels or halves."""
    rows = first_rows(run, arm)
    if run.task in ("binary", "multiclass"):
        return {name: _patients(rows, pl.col("label") == name) for name in run.classes}
    if run.task == "multilabel":
        return {
            name: _patients(rows, pl.col("labels").list.get(at) == 1)
            for at, name in enumerate(run.classes)
        }
    if run.task == "survival":
        high = pl.col("high").fill_null(pl.col("rank") > 0.5)
        return {"high risk": _patients(rows, high), "low risk": _patients(rows, ~high)}
    above = pl.col("found") > pl.col("found").median()
    return {"predicted high": _patients(rows, above), "predicted low": _patients(rows, ~above)}


def _patients(rows: pl.DataFrame, is_member: pl.Expr) -> list[str]:
    """Return the patients of the rows that meet a condition."""
    patients: list[str] = rows.filter(is_member)["patient_id"].unique(maintain_order=True).to_list()
    return patients


def _case(
    rows: pl.DataFrame, title: str, describe: Callable[[dict[str, float]], str]
) -> Case | None:
    """Return the case of the first row, or None without rows."""
    if rows.is_empty():
        return None
    row = rows.row(0, named=True)
    return Case(patient=row["patient_id"], fold=row["fold"], title=title, text=describe(row))


def _positive_class_cases(run: "Run", rows: pl.DataFrame) -> list[Case | None]:
    """Return the surest right and wrong patient of the positive (last) class."""
    name = run.classes[-1]
    positives = rows.filter(pl.col("label") == name).with_columns(
        probability=pl.col("probabilities").list.last(),
        likeliest=pl.col("probabilities").list.arg_max() == len(run.classes) - 1,
    )
    called = pl.col("likeliest")
    if run.task == "binary":
        called = pl.col("score") >= pl.col("threshold").fill_null(0.5)
    return _surest_cases(positives, called, f"{name} patients", f"a probability of {name}")


def _label_cases(run: "Run", rows: pl.DataFrame) -> list[Case | None]:
    """Return the surest right and wrong patient of the first label."""
    name = run.classes[0]
    labelled = rows.filter(pl.col("labels").list.get(0) == 1)
    labelled = labelled.with_columns(probability=pl.col("probabilities").list.first())
    called = pl.col("probability") >= 0.5
    return _surest_cases(
        labelled, called, f"patients with {name}, the first label,", f"a probability of {name}"
    )


def _surest_cases(
    rows: pl.DataFrame, called: pl.Expr, whom: str, score_name: str
) -> list[Case | None]:
    """Return the surest right and the surest wrong patient by probability."""
    right = rows.filter(called).sort("probability", "patient_id", descending=[True, False])
    wrong = rows.filter(~called).sort("probability", "patient_id")

    def describe(rule: str, count: int) -> Callable[[dict[str, float]], str]:
        return lambda row: (
            f"Of {count} {whom} {rule}. They were given {score_name} of {row['probability']:.3f}"
        )

    return [
        _case(right, "The surest right", describe("called right, the surest", right.height)),
        _case(wrong, "The surest wrong", describe("missed, the surest", wrong.height)),
    ]


def _regression_cases(run: "Run", rows: pl.DataFrame) -> list[Case | None]:
    """Return the nearest and the farthest prediction in the target's upper half."""
    target = run.result["target"]
    upper_half = rows.filter(pl.col("value") >= pl.col("value").median())
    upper_half = upper_half.with_columns(off=(pl.col("found") - pl.col("value")).abs())

    def describe(rule: str) -> Callable[[dict[str, float]], str]:
        return lambda row: (
            f"Of the {upper_half.height} patients in the upper half of {target} the one that is "
            f"{rule}. It is {row['value']:.4g}, predicted was {row['found']:.4g}"
        )

    return [
        _case(upper_half.sort("off", "patient_id"), "The nearest", describe("predicted best")),
        _case(
            upper_half.sort("off", "patient_id", descending=[True, False]),
            "The farthest",
            describe("predicted worst"),
        ),
    ]


def _survival_cases(_: "Run", rows: pl.DataFrame) -> list[Case | None]:
    """Return the highest and lowest risk among patients with an early event."""
    observed = rows.filter(pl.col("event"))
    early = observed.filter(pl.col("time") <= pl.col("time").median())

    def describe(rule: str) -> Callable[[dict[str, float]], str]:
        return lambda row: (
            f"Of the {early.height} patients with an event in the earlier half of all events the "
            f"one with the {rule} risk. The event came at {row['time']:.4g}; {row['rank']:.0%} of "
            "the fold's patients have a lower risk"
        )

    return [
        _case(
            early.sort("rank", "patient_id", descending=[True, False]),
            "The surest right",
            describe("highest"),
        ),
        _case(early.sort("rank", "patient_id"), "The surest wrong", describe("lowest")),
    ]
