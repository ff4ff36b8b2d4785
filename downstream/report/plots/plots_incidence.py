"""Figure of the cumulative incidence of competing events.

Shape letters: P patients.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from downstream.report.plots.plots_base import COLOURS, new_figure, plain, shortened, to_svg
from downstream.survival.group_incidence import GROUPS
from downstream.survival.incidence import cumulative_incidence

_LINES = ("-", "--", ":", "-.")


def incidence_svg(
    time_P: NDArray[np.float64],
    cause_P: NDArray[np.int64],
    high_P: NDArray[np.bool_],
    causes: Sequence[str],
    *,
    title: str = "",
    xlabel: str = "time",
) -> bytes:
    """Draw the cumulative incidence of each cause in two risk groups, with bands.

    A colour is a group, a kind of line a cause; the event of interest is solid.

    Args:
        time_P: times to the first event of any kind, or to the end of follow-up.
        cause_P: 0 for censored, 1 for the event of interest, then the others.
        high_P: true for the high risk group. An empty group is left out.
        causes: names of the causes.
        title: title above the axes.
        xlabel: label of the time axis, with the unit.

    Returns:
        An SVG.
    """
    figure, axes = new_figure(6.4, 4.4)
    for colour, name, group_P in zip(COLOURS, GROUPS, (~high_P, high_P), strict=False):
        if not group_P.any():
            continue
        cause_G = cause_P[group_P].astype(np.int64)
        incidence = cumulative_incidence(time_P[group_P], cause_G, len(causes))
        at = np.r_[0, incidence.times]
        for number, cause in enumerate(causes):
            low, high, share = (
                np.r_[0, part[number]]
                for part in (incidence.low, incidence.high, incidence.estimate)
            )
            events = int((cause_G == number + 1).sum())
            line = _LINES[number % len(_LINES)]
            label = f"{name}, {plain(shortened(cause))} ({events} of {int(group_P.sum())})"
            axes.step(at, share, where="post", color=colour, linestyle=line, lw=2, label=label)
            if number == 0:
                axes.fill_between(at, low, high, step="post", color=colour, alpha=0.15, lw=0)
    axes.set(xlabel=plain(xlabel), ylabel="cumulative incidence", ylim=(0, 1.03))
    axes.set_title(plain(shortened(title)), fontsize=10)
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    return to_svg(figure)
