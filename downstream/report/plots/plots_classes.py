"""Figures of a classifier: ROC, precision-recall, reliability, confusion, risk by coverage.

Shape letters: S rows of predictions, P patients, C classes.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from downstream.report.plots.plots_bands import (
    GRID,
    precision_recall_band,
    precision_recall_points,
    reliability,
    roc_band,
    roc_points,
)
from downstream.report.plots.plots_base import (
    COLOURS,
    CONTEXT,
    new_figure,
    plain,
    shortened,
    to_svg,
)
from downstream.report.run_tables import FEW

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from downstream.measures.abstention import RiskCoverage
    from downstream.report.plots.plots_bands import CurveScores

Estimates = Mapping[str, tuple[float, float, float]]
Corner = Literal["lower left", "lower right"]


_DARK = 0.55
_SMALL = (3.3, 3.3)
_IN_BIN, _MOST_BINS = 10, 10


def roc_svg(
    curves: Mapping[str, "CurveScores"],
    *,
    estimates: Estimates | None = None,
    context: Mapping[str, "CurveScores"] | None = None,
    title: str = "",
    n: int = 500,
    seed: int = 0,
) -> bytes:
    """Draw ROC curves with pointwise 95 % bands from a bootstrap over patients.

    Args:
        curves: name -> scores.
        estimates: name -> (AUROC, low, high) for the legend, where they are known.
        context: curves of other arms, drawn grey behind them; then the figure is a small one.
        title: title above the axes.
        n: number of resamples for the bands.
        seed: seed of the bootstrap.

    Returns:
        An SVG.

    Raises:
        UndefinedMetricError: All rows of a curve are of one class.
    """
    figure, axes = new_figure(*((5.2, 5.0) if context is None else _SMALL))
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle="--")
    for scores in (context or {}).values():
        axes.plot(*roc_points(scores), color=CONTEXT, lw=1)
    for number, (name, scores) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        axes.fill_between(
            GRID, *roc_band(scores, n=n, seed=seed), color=colour, alpha=0.15, linewidth=0
        )
        axes.plot(*roc_points(scores), color=colour, lw=2, label=_label(name, estimates, context))
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
    axes.set_title(plain(shortened(title, 40)), fontsize=12 if context is None else 9)
    _show_estimates(axes, "AUROC" if estimates else "", loc="lower right")
    return to_svg(figure)


def _show_estimates(axes: "Axes", measure: str, *, loc: Corner) -> None:
    """Set the axes' limits to 0..1, and add a legend that names its measure."""
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    legend_title = f"{measure} (95 % interval)" if measure else ""
    axes.legend(title=legend_title, loc=loc, frameon=False, fontsize=8, title_fontsize=8)


def _label(name: str, estimates: Estimates | None, context: object) -> str:
    """Return the legend entry of a curve; a small figure has the name as its title."""
    if context is None or not estimates or name not in estimates:
        return named(name, estimates)
    estimate, low, high = estimates[name]
    return f"{estimate:.3f} ({low:.3f} to {high:.3f})"


def named(name: str, estimates: Estimates | None) -> str:
    """Return the legend entry of a curve: its name, and its estimate with interval if given.

    >>> named("uni2", {"uni2": (0.8, 0.7, 0.9)}), named("uni2", None)
    ('uni2: 0.800 (0.700 to 0.900)', 'uni2')
    """
    if not estimates or name not in estimates:
        return plain(shortened(name))
    estimate, low, high = estimates[name]
    return f"{plain(shortened(name))}: {estimate:.3f} ({low:.3f} to {high:.3f})"


def precision_recall_svg(
    curves: Mapping[str, "CurveScores"],
    *,
    estimates: Estimates | None = None,
    context: Mapping[str, "CurveScores"] | None = None,
    title: str = "",
    n: int = 500,
    seed: int = 0,
) -> bytes:
    """Draw precision-recall curves with pointwise 95 % bands from a bootstrap over patients.

    Args:
        curves: name -> scores.
        estimates: name -> (average precision, low, high) for the legend, where they are known.
        context: curves of other arms, drawn grey behind them; then the figure is a small one.
        title: title above the axes.
        n: number of resamples for the bands.
        seed: seed of the bootstrap.

    Returns:
        An SVG; dashed lines are the share of the class, the precision of chance.

    Raises:
        UndefinedMetricError: All rows of a curve are of one class.
    """
    figure, axes = new_figure(*((5.2, 5.0) if context is None else _SMALL))
    for scores in (context or {}).values():
        recall, precision = precision_recall_points(scores)
        axes.step(
            np.r_[0, recall], np.r_[precision[0], precision], color=CONTEXT, where="pre", lw=1
        )
    for level in sorted({float(scores.label.mean()) for scores in curves.values()}):
        axes.axhline(level, color="0.7", linewidth=1, linestyle="--")
    for number, (name, scores) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        band = precision_recall_band(scores, n=n, seed=seed)
        axes.fill_between(GRID, *band, color=colour, alpha=0.15, linewidth=0)
        recall, precision = precision_recall_points(scores)
        at, heights = np.r_[0, recall], np.r_[precision[0], precision]
        axes.step(
            at, heights, where="pre", color=colour, lw=2, label=_label(name, estimates, context)
        )
    axes.set(xlabel="recall (sensitivity)", ylabel="precision", aspect="equal")
    axes.set_title(plain(shortened(title, 40)), fontsize=12 if context is None else 9)
    _show_estimates(axes, "AUPRC" if estimates else "", loc="lower left")
    return to_svg(figure)


def reliability_svg(
    curves: Mapping[str, "CurveScores"],
    *,
    xlabel: str,
    ylabel: str,
    context: Mapping[str, "CurveScores"] | None = None,
    title: str = "",
) -> bytes:
    """Draw predicted probabilities against observed shares, above a histogram of predictions.

    Args:
        curves: name -> scores in 0..1.
        xlabel: label of the predicted probability.
        ylabel: label of the observed share.
        context: curves of other arms, drawn grey behind them; then the figure is a small one.
        title: title above the axes.

    Returns:
        An SVG.

    Raises:
        UndefinedMetricError: There is no row.
    """
    from matplotlib.gridspec import GridSpec

    figure, spare = new_figure(*((5.2, 5.6) if context is None else (3.3, 3.9)))
    spare.remove()
    grid = GridSpec(2, 1, figure=figure, height_ratios=[5, 1])
    axes, below = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle="--")
    for scores in (context or {}).values():
        behind = reliability(scores, bins=_bins(scores), n=2)
        axes.plot(behind.predicted, behind.observed, color=CONTEXT, lw=1)
    for number, (name, scores) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        bins = reliability(scores, bins=_bins(scores))
        axes.vlines(bins.predicted, bins.low, bins.high, color=colour, linewidth=1.5, alpha=0.6)
        axes.plot(
            bins.predicted,
            bins.observed,
            color=colour,
            marker="o",
            ms=5,
            lw=1.5,
            label=named(name, None),
        )
        below.hist(scores.score, bins=list(np.linspace(0, 1, 41)), color=colour, histtype="step")
    axes.set(ylabel=ylabel, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    below.set(xlabel=xlabel, ylabel="predictions", xlim=(-0.01, 1.01))
    for one in (axes, below):
        one.spines[["top", "right"]].set_visible(False)
    if context is None:
        axes.legend(loc="best", frameon=False, fontsize=8)
    axes.set_title(plain(shortened(title, 40)), fontsize=9)
    return to_svg(figure)


def _bins(scores: "CurveScores") -> int:
    """Return the number of bins: ten, or fewer so that each holds ten patients."""
    return int(np.clip(len(np.unique(scores.owner)) // _IN_BIN, 2, _MOST_BINS))


def confusion_svg(counts_CC: NDArray[np.int64], names: Sequence[str], *, title: str = "") -> bytes:
    """Draw counts of true classes (rows) by predicted ones (columns), shaded by share of the row.

    Args:
        counts_CC: counts of patients or tiles.
        names: names of the classes.
        title: title above the matrix.

    Returns:
        An SVG.
    """
    classes = len(names)
    side = 1.9 + 0.62 * max(classes, 2)
    figure, axes = new_figure(side + 0.6, side)
    of_row_C = np.maximum(counts_CC.sum(axis=1), 1)
    share_CC = counts_CC / of_row_C[:, None]
    axes.imshow(share_CC, cmap="Blues", vmin=0, vmax=1)
    for row in range(classes):
        for column in range(classes):
            share = share_CC[row, column]
            colour = "white" if share > _DARK else "black"
            text = f"{counts_CC[row, column]}"
            if of_row_C[row] >= FEW:  # a percentage of a few patients says less than their number
                text += f"\n{share:.0%}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    shown = [plain(shortened(name, 16)) for name in names]
    axes.set_xticks(range(classes), labels=shown, rotation=30 if classes > 2 else 0, fontsize=9)
    axes.set_yticks(range(classes), labels=shown, fontsize=9)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(plain(shortened(title, 30)), fontsize=10)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return to_svg(figure)


def risk_coverage_svg(
    curves: Mapping[str, "RiskCoverage"],
    *,
    context: Mapping[str, "RiskCoverage"] | None = None,
    title: str = "",
) -> bytes:
    """Draw risk-coverage curves: the share of errors among the surest predictions.

    Args:
        curves: name -> curve from `abstention.risk_coverage`.
        context: curves of other arms, drawn grey behind them; then the figure is a small one.
        title: title above the axes.

    Returns:
        An SVG; the legend has the area under each curve, and the least possible one.
    """
    figure, axes = new_figure(*((5.2, 4.2) if context is None else _SMALL))
    for curve in (context or {}).values():
        axes.plot(curve.coverage, curve.risk, color=CONTEXT, lw=1)
    for number, (name, curve) in enumerate(curves.items()):
        text = f"{curve.aurc:.3f} (least {curve.optimal_aurc:.3f})"
        text = text if context is not None else f"{named(name, None)}: {text}"
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(curve.coverage, curve.risk, color=colour, lw=2, label=text)
    shown = [*curves.values(), *(context or {}).values()]
    highest = max(float(curve.risk.max()) for curve in shown)
    axes.set(xlabel="share of predictions given, surest first", ylabel="share of errors")
    axes.set(xlim=(0, 1.01), ylim=(0, max(highest * 1.35, 0.05)))
    axes.legend(title="area", loc="upper left", frameon=False, fontsize=8, title_fontsize=8)
    axes.set_title(plain(shortened(title, 40)), fontsize=9)
    return to_svg(figure)
