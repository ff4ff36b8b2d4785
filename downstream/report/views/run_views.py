"""Pictures of a run's predictions, each with a caption on what it shows and of which patients.

Curves hold all predictions, and patients are drawn whole in their bands. What counts patients
(tables, survival curves, scatter) holds one prediction of each, that of the first repetition.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from downstream.report.plots.plots_report import forest_svg
from downstream.report.run_tables import chance, comparison_rows, shown_name
from downstream.report.views.picture_sections import Picture, Section
from downstream.report.views.views_classes import (
    class_section,
    class_sections,
    label_section,
    label_sections,
)
from downstream.report.views.views_outcomes import (
    groups_section,
    number_section,
    number_sections,
    survival_sections,
)
from ingest.pages import data_uri

if TYPE_CHECKING:
    from downstream.report.finished_run import Run


def forest(run: "Run") -> Picture | None:
    """Return a forest plot of all arms' main measure, or None where it is undefined for all."""
    estimates, name = run.estimates(run.metric), shown_name(run.metric)
    if not estimates:
        return None
    level = chance(run)
    line = "; the dashed line is chance" if level is not None else ""
    drawn = forest_svg(estimates, xlabel=f"{name}, 95 % interval over patients", chance=level)
    return Picture(
        src=data_uri(drawn, "image/svg+xml"),
        alt=f"{name} with intervals per arm",
        text=f"{name} of each arm with its interval over patients{line}.",
        width=680,
    )


def differences(run: "Run") -> Picture | None:
    """Return a forest plot of differences from the reference, or None without comparisons."""
    rows = [row for row in comparison_rows(run) if row["low"] is not None]
    if not rows:
        return None
    others = {row["other"] for row in rows}
    lines = {
        row["one"] if len(others) == 1 else f"{row['one']} - {row['other']}": (
            row["estimate"],
            row["low"],
            row["high"],
        )
        for row in rows
    }
    margin = rows[0].get("margin")
    name = shown_name(rows[0]["measure"])
    drawn = forest_svg(
        lines,
        xlabel=f"how much better in {name}, 95 % interval with the luck of training",
        chance=0.0,
        margin=None if margin is None else -margin,
    )
    dotted = "" if margin is None else f", the dotted one at {-margin:g} what counts as not worse"
    return Picture(
        src=data_uri(drawn, "image/svg+xml"),
        alt=f"Differences in {name} with intervals",
        text=(
            f"Differences from {' or '.join(sorted(others))} on the same test parts: right of the "
            f"dashed line is better{dotted}."
        ),
        width=680,
    )


SECTIONS: dict[str, Callable[["Run"], list[Section]]] = {
    "binary": class_sections,
    "multiclass": class_sections,
    "multilabel": label_sections,
    "regression": number_sections,
    "survival": survival_sections,
}
"""The sections of a run's own page, by task."""

SUMMARY_SECTION: dict[str, Callable[["Run", list[str]], Section]] = {
    "binary": class_section,
    "multiclass": class_section,
    "multilabel": label_section,
    "regression": number_section,
    "survival": groups_section,
}
"""The section of some arms that represents a run on the page of the lake, by task."""


def sections(run: "Run") -> list[Section]:
    """Return the sections with pictures of a run's predictions, by its task."""
    return [part for part in SECTIONS[run.task](run) if part.pictures or part.notes]


def summary_section(run: "Run", arm: str) -> Section:
    """Return the section of one arm that represents the run on the page of the lake."""
    return SUMMARY_SECTION[run.task](run, [arm])
