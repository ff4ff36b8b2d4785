"""Figures of predicted numbers and survival curves against what was observed.

Shape letters: P patients, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from downstream.measures import UndefinedMetricError
from downstream.plots_base import COLOURS, new_figure, plain, shortened, to_png

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_LEAST_IN_GROUP, _MOST_GROUPS = 15, 5


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Survival at a time, said and observed, in groups by what is said.

    Attributes:
        said: [G] mean predicted survival.
        found: [G] Kaplan-Meier estimate; NaN where nobody was followed that long.
        low: [G] lower 95 % limit (log-log).
        high: [G] upper 95 % limit.
        patients: [G].
    """

    said: Floats
    found: Floats
    low: Floats
    high: Floats
    patients: NDArray[np.int64]


def scatter_png(value_P: Floats, found_P: Floats, *, title: str = "", name: str = "") -> bytes:
    """True numbers against predicted ones; the dashed line is where both are the same.

    Args:
        value_P: True.
        found_P: Predicted.
        title: Above the axes.
        name: Of the number, with its unit.

    Returns:
        A PNG.
    """
    figure, axes = new_figure(4.6, 4.4)
    low = float(min(value_P.min(), found_P.min()))
    high = float(max(value_P.max(), found_P.max()))
    room = 0.04 * (high - low or 1.0)
    limits = (low - room, high + room)
    axes.plot(limits, limits, color="0.7", linewidth=1, linestyle="--")
    clear = float(np.clip(60 / len(value_P), 0.25, 0.8))
    axes.scatter(found_P, value_P, s=18, color=COLOURS[0], alpha=clear, linewidths=0)
    axes.set(xlabel=f"predicted {plain(name)}", ylabel=f"true {plain(name)}", aspect="equal")
    axes.set(xlim=limits, ylim=limits)
    axes.set_title(plain(shortened(title)), fontsize=10)
    return to_png(figure)


def survival_groups(
    time_P: Floats, event_P: NDArray[np.bool_], said_P: Floats, *, at: float
) -> Groups:
    """Patients in groups of equal size by predicted survival at a time, and what became of them.

    Args:
        time_P: Times to the event or to the end of follow-up.
        event_P: True where the event was seen.
        said_P: Predicted S(at).
        at: The time.

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
    parts = np.array_split(np.argsort(said_P, kind="stable"), number)
    observed = np.array([_observed(time_P[part], event_P[part], at) for part in parts])
    return Groups(
        said=np.array([said_P[part].mean() for part in parts]),
        found=observed[:, 0],
        low=observed[:, 1],
        high=observed[:, 2],
        patients=np.array([len(part) for part in parts]),
    )


def _observed(time_P: Floats, event_P: NDArray[np.bool_], at: float) -> tuple[float, float, float]:
    """Kaplan-Meier estimate at a time with its limits; NaN where follow-up ends before."""
    from sksurv.nonparametric import kaplan_meier_estimator

    if time_P.max() < at:
        return np.nan, np.nan, np.nan
    if not (event_P & (time_P <= at)).any():
        return 1.0, 1.0, 1.0
    steps, survival, limits = kaplan_meier_estimator(event_P, time_P, conf_type="log-log")
    last = np.searchsorted(steps, at, side="right") - 1
    return float(survival[last]), float(limits[0][last]), float(limits[1][last])


def survival_calibration_png(groups: Groups, *, title: str = "", at: str = "") -> bytes:
    """Predicted against observed survival; the dashed line is where both are the same.

    Args:
        groups: What `survival_groups` gave.
        title: Above the axes.
        at: The time, with its unit.

    Returns:
        A PNG.
    """
    figure, axes = new_figure(4.6, 4.4)
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle="--")
    axes.vlines(groups.said, groups.low, groups.high, color=COLOURS[0], linewidth=2, alpha=0.6)
    axes.plot(groups.said, groups.found, color=COLOURS[0], marker="o", linewidth=1)
    axes.set(xlabel=f"predicted survival at {plain(at)}", aspect="equal")
    axes.set(ylabel=f"observed survival at {plain(at)}", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.set_title(plain(shortened(title)), fontsize=10)
    return to_png(figure)
