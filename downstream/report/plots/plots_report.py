"""Figures of the report that other jobs do not need: intervals, fidelity bars, training curves."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from downstream.report.plots.plots_base import COLOURS, new_figure, plain, shortened, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH_IN = 5.8
_LETTER_IN, _SHORT_NAME = 0.08, 16
_GREY = "0.72"
_COIN = 0.5


def forest_svg(
    estimates: Mapping[str, tuple[float, float, float]],
    *,
    xlabel: str,
    chance: float | None = 0.5,
    margin: float | None = None,
) -> bytes:
    """Draw a forest plot: estimates with intervals, one line per name, first name on top.

    Args:
        estimates: name -> (estimate, low, high); at least one.
        xlabel: label of the horizontal axis.
        chance: position of the dashed line of the chance level; None for no line.
        margin: position of a dotted line, such as minus the non-inferiority margin.

    Returns:
        An SVG. The names have the same colours as in `roc_svg` with the same order.
    """
    names = [plain(shortened(name)) for name in estimates]
    wide = _LETTER_IN * max(0, max(map(len, names)) - _SHORT_NAME)
    figure, axes = new_figure(_WIDTH_IN + wide, 1.0 + 0.42 * len(estimates))
    for at, style in ((chance, "--"), (margin, ":")):
        if at is not None:
            axes.axvline(at, color="0.5", linestyle=style, linewidth=1)
    for row, (estimate, low, high) in enumerate(estimates.values()):
        colour = COLOURS[row % len(COLOURS)]
        axes.plot([low, high], [row, row], color=colour, linewidth=2.5, solid_capstyle="butt")
        axes.plot(estimate, row, marker="s", markersize=8, color=colour)
        text = f"{estimate:.3f} ({low:.3f} to {high:.3f})"
        axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    shown = [limit for line in estimates.values() for limit in line]
    axes.set(xlabel=xlabel, xlim=_limits(shown, chance))
    _name_rows(axes, names)
    return to_svg(figure)


def _limits(shown: Sequence[float], chance: float | None) -> tuple[float, float]:
    """Return the lower and upper limit of the axis: up to 1 for measures of the scale of AUROC."""
    plotted_numbers = [*shown, *([] if chance is None else [chance])]
    low, high = min(plotted_numbers), max(plotted_numbers)
    if chance == _COIN and high <= 1 and low >= 0:
        return float(np.floor(low * 10 - 0.3) / 10), 1.01
    room = 0.06 * (high - low or 1.0)
    return low - room, high + room


def fidelity_svg(rows: Sequence[tuple[str, float, float]]) -> bytes:
    """Draw two bars per row: a student's cosine above that of the mean feature.

    Args:
        rows: (name, cosine of the student, cosine of the mean feature).

    Returns:
        An SVG.
    """
    figure, axes = new_figure(_WIDTH_IN, 1.2 + 0.5 * len(rows))
    at = np.arange(len(rows))
    parts = (("student", COLOURS[0], -0.19, 1), ("mean feature", _GREY, 0.19, 2))
    for name, colour, shift, column in parts:
        cosines = [float(row[column]) for row in rows]
        axes.barh(at + shift, cosines, height=0.36, color=colour, label=name)
        for y, cosine in zip(at + shift, cosines, strict=True):
            inside = max(cosine, 0.0) + 0.01
            axes.text(inside, y, f"{cosine:.3f}", va="center", fontsize=8, color="0.25")
    lowest = min([0.0, *(min(row[1:]) for row in rows)])
    axes.set(xlabel="cosine with the teacher's feature, held-out patients", xlim=(lowest, 1.08))
    axes.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=9)
    _name_rows(axes, [plain(row[0]) for row in rows])
    return to_svg(figure)


def curves_svg(curves: Mapping[str, Sequence[float]], *, xlabel: str, ylabel: str) -> bytes:
    """Draw one training curve per name over epochs 1, 2, 3 and so on.

    Args:
        curves: name -> values; all of one length, at least one.
        xlabel: label of the horizontal axis.
        ylabel: label of the vertical axis.

    Returns:
        An SVG.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure(_WIDTH_IN, 3.0)
    for number, (name, ordinates) in enumerate(curves.items()):
        dashes = ("-", "--", ":", "-.")[number % 4]
        steps = np.arange(1, len(ordinates) + 1)
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(
            steps, ordinates, color=colour, linestyle=dashes, marker="o", markersize=4, label=name
        )
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=9)
    return to_svg(figure)


def _name_rows(axes: "Axes", names: Sequence[str]) -> None:
    """Label the rows of a vertical axis with names, from top to bottom."""
    axes.set_yticks(range(len(names)), labels=names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
