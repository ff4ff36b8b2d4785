"""Pictures of a run's predictions, each with a sentence that says what it shows and of whom.

Curves hold all predictions, and patients are drawn whole in their bands. What counts patients
(tables, survival curves, scatter) holds one prediction of each, that of the first repetition.

Shape letters: S rows of predictions, P patients, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from downstream.measures.class_measures import UndefinedMetricError
from downstream.report.plots.plots_base import COLOURS
from downstream.report.plots.plots_report import forest_png
from downstream.report.run_tables import chance, shown_name
from ingest.pages.slide_pictures import data_uri

if TYPE_CHECKING:
    from downstream.report.finished_run import Run

MOST_CURVES = len(COLOURS)
MOST_PANELS = 4
"""Pictures of one kind that are drawn arm by arm."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture on a page.

    Attributes:
        src: Data URI.
        alt: What it is, for those who can't see it.
        text: What it shows and how that was chosen.
        width: CSS pixels.
    """

    src: str
    alt: str
    text: str
    width: int = 500


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page under one heading.

    Attributes:
        key: Anchor.
        title: Heading.
        pictures: Side by side where there is room.
        notes: Sentences: what was left out, and why.
    """

    key: str
    title: str
    pictures: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, make: Callable[[], bytes], alt: str, text: str, width: int = 500) -> None:
        """Draw a picture, or note why these patients give none."""
        try:
            src = data_uri(make(), "image/png")
        except UndefinedMetricError as error:
            self.notes.append(f"{alt}: not drawn, {error}.")
            return
        self.pictures.append(Picture(src=src, alt=alt, text=text, width=width))


def first(names: Sequence[str], most: int, section: Section) -> list[str]:
    """The names that are drawn; the section says which are not."""
    left = list(names[most:])
    if left:
        some = ", ".join(left[:8]) + (f" and {len(left) - 8} more" if len(left) > 8 else "")
        section.notes.append(f"Drawn for the first {most}; not for {some}.")
    return list(names[:most])


def forest(run: "Run") -> Picture | None:
    """The main measure of all arms with intervals, or None where it is undefined for all."""
    estimates, name = run.estimates(run.metric), shown_name(run.metric)
    if not estimates:
        return None
    level = chance(run)
    line = "; the dashed line is chance" if level is not None else ""
    drawn = forest_png(estimates, xlabel=f"{name}, 95 % interval over patients", chance=level)
    return Picture(
        src=data_uri(drawn, "image/png"),
        alt=f"{name} with intervals per arm",
        text=f"{name} of each arm with its interval over patients{line}.",
        width=520,
    )


def differences(run: "Run") -> Picture | None:
    """Differences from the reference with intervals, or None without comparisons."""
    rows = run.result.get("comparisons", [])
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
    drawn = forest_png(
        lines,
        xlabel=f"how much better in {name}, 95 % interval over patients",
        chance=0.0,
        margin=None if margin is None else -margin,
    )
    dotted = "" if margin is None else f", the dotted one at {-margin:g} what counts as not worse"
    return Picture(
        src=data_uri(drawn, "image/png"),
        alt=f"Differences in {name} with intervals",
        text=(
            f"Differences from {' or '.join(sorted(others))} on the same patients: right of the "
            f"dashed line is better{dotted}."
        ),
        width=540,
    )


def sections(run: "Run") -> list[Section]:
    """Pictures of the predictions, by task."""
    from downstream.report.views.views_classes import class_sections, label_sections
    from downstream.report.views.views_outcomes import number_sections, survival_sections

    by_task = {
        "binary": class_sections,
        "multiclass": class_sections,
        "multilabel": label_sections,
        "regression": number_sections,
        "survival": survival_sections,
    }
    return [part for part in by_task[run.task](run) if part.pictures or part.notes]
