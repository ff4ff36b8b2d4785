"""Pictures of survival analyses and of predicted numbers.

Shape letters: P patients.
"""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from downstream.measures.class_measures import UndefinedMetricError
from downstream.report.plots.plots_incidence import incidence_svg
from downstream.report.plots.plots_outcomes import (
    km_svg,
    scatter_svg,
    survival_calibration_svg,
    survival_groups,
)
from downstream.report.views.picture_sections import MOST_PANELS, Section, first
from downstream.survival.survival_extra import has_scikit_survival

if TYPE_CHECKING:
    from downstream.report.finished_run import Run

_WITHOUT = (
    "Curves are drawn by scikit-survival, which is not installed: pip install "
    "'slidelake[survival]', and write the page again."
)
_ONE = "one prediction a patient, that of the first repetition and seed"


def number_sections(run: "Run") -> list[Section]:
    """Return the sections of a regression run."""
    return [number_section(run, run.arms)]


def number_section(run: "Run", arms: list[str]) -> Section:
    """Return the section on true against predicted numbers, one picture per arm."""
    section = Section(key="numbers", title="True and predicted numbers")
    for arm in first(arms, MOST_PANELS, section):
        rows = run.once(arm)
        true_numbers, predicted_numbers = rows["value"].to_numpy(), rows["found"].to_numpy()
        section.add(
            partial(
                scatter_svg,
                true_numbers,
                predicted_numbers,
                title=arm,
                name=str(run.result["target"]),
            ),
            f"True against predicted numbers of {arm}",
            f"{arm}: {_ONE}, {rows.height:,} patients. On the dashed line both are the same.",
            width=440,
        )
    return section


def survival_sections(run: "Run") -> list[Section]:
    """Return the sections of a survival run: risk groups, and calibration of the curves."""
    return [groups_section(run, run.arms), _calibration_section(run)]


def groups_section(run: "Run", arms: list[str]) -> Section:
    """Return the section on risk groups: survival, or the incidence of competing events."""
    causes = run.result["config"].get("causes", [])
    return incidence_section(run, arms, causes) if causes else km_section(run, arms)


def incidence_section(run: "Run", arms: list[str], causes: list[str]) -> Section:
    """Return the section with the cumulative incidence of each cause in the risk groups."""
    section = Section(key="groups", title="Cumulative incidence in the predicted risk groups")
    if not has_scikit_survival():
        section.notes.append(_WITHOUT)
        return section
    for arm in first(arms, MOST_PANELS, section):
        rows = run.once(arm).drop_nulls("high")
        if rows.is_empty():
            section.notes.append(f"{arm}: no risk groups were kept.")
            continue
        time, cause, high = (rows[name].to_numpy() for name in ("time", "cause", "high"))
        section.add(
            partial(incidence_svg, time, cause, high, causes, title=arm, xlabel=_time_name(run)),
            f"Cumulative incidence of {' and '.join(causes)} by {arm}",
            f"{arm}: Aalen-Johansen estimates, in which a patient with another event can no longer "
            f"have {causes[0]}; bands are 95 %. High risk is above the median risk (of the "
            f"cause-specific hazard of {causes[0]}) of the fold's TRAINING patients; {_ONE}, "
            f"{rows.height:,} patients. The groups are drawn, not tested.",
            width=640,
        )
    return section


def km_section(run: "Run", arms: list[str]) -> Section:
    """Return the section with Kaplan-Meier curves of the predicted risk groups."""
    section = Section(key="groups", title="Predicted risk groups")
    if not has_scikit_survival():
        section.notes.append(_WITHOUT)
        return section
    for arm in first(arms, MOST_PANELS, section):
        rows = run.once(arm).drop_nulls("high")
        if rows.is_empty():
            section.notes.append(f"{arm}: no risk groups were kept.")
            continue
        time, event, high = (rows[name].to_numpy() for name in ("time", "event", "high"))
        section.add(
            partial(km_svg, time, event, high, title=arm, xlabel=_time_name(run)),
            f"Kaplan-Meier curves of {arm}",
            f"{arm}: high risk is above the median risk of the fold's TRAINING patients; {_ONE}, "
            f"{rows.height:,} patients. Bands are 95 %, ticks are patients whose follow-up ends. "
            "The groups are drawn, not tested: the patients of a fold helped to make all other "
            "folds' cuts.",
            width=500,
        )
    return section


def _time_name(run: "Run") -> str:
    """Return the name of the column of follow-up times."""
    return str(run.result["config"]["columns"][0])


def _calibration_section(run: "Run") -> Section:
    """Return the section on predicted against observed survival at one time."""
    section = Section(key="calibration", title="Calibration of survival")
    if not has_scikit_survival():
        section.notes.append(_WITHOUT)
        return section
    horizon = horizon_of(run)
    if horizon is None:
        section.notes.append("No survival curves were kept, or no event was seen.")
        return section
    at, index = horizon
    without = []
    for arm in first(run.arms, MOST_PANELS, section):
        rows = run.once(arm).drop_nulls("curve")
        if rows.is_empty():
            without.append(arm)
            continue
        _calibration(section, run, arm, rows, at=at, index=index)
    if without:
        section.notes.append(f"Without survival curves: {', '.join(without)}.")
    return section


def _calibration(
    section: Section, run: "Run", arm: str, rows: pl.DataFrame, *, at: float, index: int
) -> None:
    """Add one arm's picture of predicted against observed survival to a section."""
    survival_P = rows["curve"].list.get(index).to_numpy()
    time, event = rows["time"].to_numpy(), rows["event"].to_numpy()
    name = f"{_time_name(run)} = {at:g}"
    try:
        groups = survival_groups(time, event, survival_P, at=at)
    except UndefinedMetricError as error:
        section.notes.append(f"{arm}: not drawn, {error}.")
        return
    section.add(
        partial(survival_calibration_svg, groups, title=arm, at=name),
        f"Predicted against observed survival of {arm}",
        f"{arm}: survival at {name}, in {len(groups.predicted)} groups of about "
        f"{int(groups.patients.mean())} patients by predicted survival; observed is the "
        "Kaplan-Meier estimate with its 95 % interval. The time is that of the kept curves which "
        f"is nearest to the median time of the events; {_ONE}.",
        width=440,
    )


def horizon_of(run: "Run") -> tuple[float, int] | None:
    """Return the curve time nearest to the median event, and its index; None without events."""
    times = np.array(run.result.get("curve_times") or [], dtype=np.float64)
    event_times = run.scored.filter(pl.col("event"))["time"]
    if not len(times) or event_times.is_empty():
        return None
    index = int(np.abs(times - float(np.median(event_times.to_numpy()))).argmin())
    return float(times[index]), index
