"""Figures of robustness passports: measures of columns, margins of samples, confounded probes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from downstream.report.plots.plots_base import COLOURS, new_figure, plain, shortened, to_svg

_PANEL_IN = 2.6


def panels_svg(
    measures: Sequence[tuple[str, float | None, Mapping[str, tuple[float, float, float]]]],
    columns: Sequence[str],
) -> bytes:
    """Draw some measures side by side, in each a line per column with its interval.

    Args:
        measures: (name, neutral value or None, column -> (estimate, low, high)) of each panel.
        columns: the columns, first name on top; one without an estimate has an empty line.

    Returns:
        An SVG.
    """
    figure, panels = new_figure(
        1.6 + _PANEL_IN * len(measures), 1.0 + 0.36 * len(columns), len(measures)
    )
    for number, (axes, (name, neutral, estimates)) in enumerate(
        zip(np.atleast_1d(panels), measures, strict=True)
    ):
        if neutral is not None:
            axes.axvline(neutral, color="0.5", linestyle="--", linewidth=1)
        for row, column in enumerate(columns):
            if column in estimates:
                estimate, low, high = estimates[column]
                colour = COLOURS[row % len(COLOURS)]
                axes.plot([low, high], [row, row], color=colour, linewidth=2.5)
                axes.plot(estimate, row, marker="s", markersize=6, color=colour)
        axes.set_title(plain(name), fontsize=10)
        axes.set_ylim(len(columns) - 0.5, -0.5)
        names = [plain(shortened(column, 24)) for column in columns]
        axes.set_yticks(range(len(columns)), names if number == 0 else [""] * len(names))
        axes.tick_params(labelsize=9)
    return to_svg(figure)


def margins_svg(margins: Mapping[str, NDArray[np.float64]]) -> bytes:
    """Draw the margins of the samples, from the lowest to the highest, a curve per column.

    Args:
        margins: column -> margins, without NaN.

    Returns:
        An SVG.
    """
    figure, axes = new_figure(5.8, 3.6)
    axes.axhline(0, color="0.5", linestyle="--", linewidth=1)
    axes.axvspan(0, 10, color="0.94", linewidth=0)
    for number, (name, margin_N) in enumerate(margins.items()):
        share = 100 * (np.arange(len(margin_N)) + 0.5) / len(margin_N)
        colour = COLOURS[number % len(COLOURS)]
        style: Any = ("-", "--", ":", "-.")[number // len(COLOURS) % 4]
        axes.plot(share, np.sort(margin_N), color=colour, linestyle=style, label=plain(name))
    axes.set(xlabel="samples, lowest margin first, %", ylabel="margin", xlim=(0, 100))
    axes.legend(frameon=False, fontsize=8)
    return to_svg(figure)


def confounding_svg(curves: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Draw the accuracy of the probes of the class over Cramér's V in training, a curve per column.

    Args:
        curves: column -> `cramers_v`, `accuracy` and `chance`.

    Returns:
        An SVG.
    """
    figure, axes = new_figure(5.8, 3.6)
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        style: Any = ("-", "--", ":", "-.")[number // len(COLOURS) % 4]
        axes.plot(
            curve["cramers_v"],
            curve["accuracy"],
            color=colour,
            linestyle=style,
            marker="o",
            markersize=4,
            label=plain(name),
        )
    chance = next(iter(curves.values()))["chance"]
    axes.axhline(chance, color="0.5", linestyle="--", linewidth=1)
    axes.set(
        xlabel="Cram\N{LATIN SMALL LETTER E WITH ACUTE}r's V of class and site in training",
        ylabel="balanced accuracy",
    )
    axes.legend(frameon=False, fontsize=8)
    return to_svg(figure)
