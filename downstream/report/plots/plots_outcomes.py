"""Figures of numbers and of survival: predicted against observed, Kaplan-Meier.

Shape letters: P patients, G groups.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from downstream.measures.class_measures import UndefinedMetricError
from downstream.report.plots.plots_base import (
    COLOURS,
    MOST_MARKS,
    new_figure,
    plain,
    shortened,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]


_LEAST_IN_GROUP, _MOST_GROUPS = 15, 5
_RISK_TIMES = 5


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Predicted and observed survival at a time, in groups by predicted survival.

    Attributes:
        predicted: [G] mean predicted survival.
        observed: [G] Kaplan-Meier estimate; NaN without follow-up until that time.
        low: [G] lower 95 % limit (log-log).
        high: [G] upper 95 % limit.
        patients: [G] number of patients.
    """

    predicted: Floats
    observed: Floats
    low: Floats
    high: Floats
    patients: NDArray[np.int64]


def scatter_svg(true_P: Floats, predicted_P: Floats, *, title: str = "", name: str = "") -> bytes:
    """Draw true numbers against predicted ones; the dashed line is where both are the same.

    Args:
        true_P: true numbers.
        predicted_P: predicted numbers.
        title: title above the axes.
        name: name of the number, with its unit.

    Returns:
        An SVG.
    """
    figure, axes = new_figure(4.6, 4.4)
    low = float(min(true_P.min(), predicted_P.min()))
    high = float(max(true_P.max(), predicted_P.max()))
    room = 0.04 * (high - low or 1.0)
    limits = (low - room, high + room)
    axes.plot(limits, limits, color="0.7", linewidth=1, linestyle="--")
    clear = float(np.clip(60 / len(true_P), 0.25, 0.8))
    many = len(true_P) > MOST_MARKS
    axes.scatter(
        predicted_P, true_P, s=18, color=COLOURS[0], alpha=clear, linewidths=0, rasterized=many
    )
    axes.set(xlabel=f"predicted {plain(name)}", ylabel=f"true {plain(name)}", aspect="equal")
    axes.set(xlim=limits, ylim=limits)
    axes.set_title(plain(shortened(title)), fontsize=10)
    return to_svg(figure)


def survival_groups(
    time_P: Floats, event_P: NDArray[np.bool_], predicted_P: Floats, *, at: float
) -> Groups:
    """Return predicted and observed survival at a time, in equally large groups of patients.

    Args:
        time_P: times to the event or to the end of follow-up.
        event_P: true where the event was seen.
        predicted_P: predicted S(at).
        at: time at which survival is compared.

    Raises:
        UndefinedMetricError: Fewer than two groups of 15 patients.
    """
    number = min(len(time_P) // _LEAST_IN_GROUP, _MOST_GROUPS)
    if number < 2:
        msg = (
            f"predicted survival is compared in at least 2 groups of {_LEAST_IN_GROUP} patients; "
            f"there are {len(time_P)} patients"
        )
        raise UndefinedMetricError(msg)
    parts = np.array_split(np.argsort(predicted_P, kind="stable"), number)
    observed = np.array([_observed(time_P[part], event_P[part], at) for part in parts])
    return Groups(
        predicted=np.array([predicted_P[part].mean() for part in parts]),
        observed=observed[:, 0],
        low=observed[:, 1],
        high=observed[:, 2],
        patients=np.array([len(part) for part in parts]),
    )


def _observed(time_P: Floats, event_P: NDArray[np.bool_], at: float) -> tuple[float, float, float]:
    """Return the Kaplan-Meier estimate at a time and its two limits; NaN beyond follow-up."""
    from sksurv.nonparametric import kaplan_meier_estimator

    if time_P.max() < at:
        return np.nan, np.nan, np.nan
    if not (event_P & (time_P <= at)).any():
        return 1.0, 1.0, 1.0
    steps, survival, limits = kaplan_meier_estimator(event_P, time_P, conf_type="log-log")
    last = np.searchsorted(steps, at, side="right") - 1
    return float(survival[last]), float(limits[0][last]), float(limits[1][last])


def survival_calibration_svg(groups: Groups, *, title: str = "", at: str = "") -> bytes:
    """Draw predicted against observed survival; on the dashed line both are the same.

    Args:
        groups: groups from `survival_groups`.
        title: title above the axes.
        at: time at which survival is compared, with its unit.

    Returns:
        An SVG.
    """
    figure, axes = new_figure(4.6, 4.4)
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle="--")
    axes.vlines(groups.predicted, groups.low, groups.high, color=COLOURS[0], linewidth=2, alpha=0.6)
    axes.plot(groups.predicted, groups.observed, color=COLOURS[0], marker="o", linewidth=1)
    axes.set(xlabel=f"predicted survival at {plain(at)}", aspect="equal")
    axes.set(ylabel=f"observed survival at {plain(at)}", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.set_title(plain(shortened(title)), fontsize=10)
    return to_svg(figure)


def km_svg(
    time_P: NDArray[np.float64],
    event_P: NDArray[np.bool_],
    high_P: NDArray[np.bool_],
    *,
    title: str = "",
    xlabel: str = "time",
) -> bytes:
    """Draw Kaplan-Meier curves of two risk groups, with bands and numbers at risk.

    Args:
        time_P: times to the event or to the end of follow-up.
        event_P: true where the event was seen.
        high_P: true for the high risk group. An empty group is left out.
        title: title above the axes.
        xlabel: label of the time axis, with the unit.

    Returns:
        An SVG.
    """
    figure, axes = new_figure(6.0, 4.8)
    ticks = _round_times(float(time_P.max()))
    for number, (name, group_P) in enumerate((("low risk", ~high_P), ("high risk", high_P))):
        _km_curve(axes, time_P[group_P], event_P[group_P], name=name, colour=COLOURS[number])
        at_risk = [int((time_P[group_P] >= tick).sum()) for tick in ticks]
        _at_risk(axes, ticks, at_risk, name=name, row=number)
    axes.set(xlabel=plain(xlabel), ylabel="survival", title=plain(title), ylim=(0, 1.03))
    axes.set(xticks=ticks)
    axes.legend(loc="best", frameon=False)
    return to_svg(figure)


def _km_curve(
    axes: "Axes", time_P: NDArray[np.float64], event_P: NDArray[np.bool_], *, name: str, colour: str
) -> None:
    """Draw the step curve of a group, its 95 % band (log-log) and ticks of censored patients."""
    from sksurv.nonparametric import kaplan_meier_estimator

    if not len(time_P):
        return
    if event_P.any():
        at, survival, (low, high) = kaplan_meier_estimator(event_P, time_P, conf_type="log-log")
        style: dict[str, Any] = {"color": colour, "alpha": 0.15, "lw": 0}
        style["rasterized"] = len(at) > MOST_MARKS
        axes.fill_between(np.r_[0, at], np.r_[1, low], np.r_[1, high], step="post", **style)
    else:
        at, survival = np.unique(time_P), np.ones(len(np.unique(time_P)))
    label = f"{name} (n = {len(time_P)}, events = {int(event_P.sum())})"
    axes.step(np.r_[0, at], np.r_[1, survival], where="post", color=colour, lw=2, label=label)
    censored = time_P[~event_P]
    heights = survival[np.searchsorted(at, censored)]
    axes.plot(
        censored,
        heights,
        linestyle="",
        marker="|",
        color=colour,
        markersize=7,
        rasterized=len(censored) > MOST_MARKS,
    )


def _round_times(last: float) -> NDArray[np.float64]:
    """Return a few round times from 0 to the last time."""
    from matplotlib.ticker import MaxNLocator

    times = np.asarray(MaxNLocator(_RISK_TIMES).tick_values(0, last))
    return times[(times >= 0) & (times <= last)]


def _at_risk(
    axes: "Axes", ticks: NDArray[np.float64], counts: list[int], *, name: str, row: int
) -> None:
    """Draw a group's row of the table under the axes: patients at risk at each tick."""
    below = -0.24 - 0.07 * row
    style: dict[str, Any] = {"color": COLOURS[row], "fontsize": 9, "clip_on": False}
    place = axes.get_xaxis_transform()
    for tick, count in zip(ticks, counts, strict=True):
        axes.text(float(tick), below, str(count), transform=place, ha="center", **style)
    axes.text(-0.06, below, name, transform=axes.transAxes, ha="right", **style)
    if row == 0:
        axes.text(-0.06, below + 0.07, "at risk", transform=axes.transAxes, ha="right", fontsize=9)
