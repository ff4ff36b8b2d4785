"""Figures as PNG bytes: ROC curves, Kaplan-Meier curves, attention over a thumbnail.

Drawn with matplotlib's objects on the Agg canvas and no pyplot, so nothing global changes and
nothing needs a display. Colours are Okabe and Ito's, which colour-blind readers can tell apart.

Shape letters: P patients, N tiles, H W pixels of a thumbnail.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from downstream.metrics import UndefinedMetricError, auroc, bootstrap

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from downstream.metrics import Estimate

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DPI = 130
_GRID = np.linspace(0, 1, 101)
_RISK_TIMES = 5


def roc_png(
    curves: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]],
    *,
    estimates: Mapping[str, Estimate] | None = None,
    title: str = "",
    n: int = 500,
    seed: int = 0,
) -> bytes:
    """ROC curves with pointwise 95 % bands from a bootstrap over patients.

    Args:
        curves: Name -> ([P] labels 0/1, [P] scores, higher = more likely 1).
        estimates: Name -> AUROC for the legend, where it is known; others are bootstrapped here.
        title: Above the axes.
        n: Resamples of the bands and of the intervals in the legend.
        seed: Of the bootstrap.

    Returns:
        A PNG.

    Raises:
        UndefinedMetricError: Patients of one class only.
    """
    figure, axes = new_figure(5.2, 5.0)
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle="--")
    for number, (name, (label_P, score_P)) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        found = (estimates or {}).get(name) or bootstrap(auroc, label_P, score_P, n=n, seed=seed)
        text = f"{name}: {found.estimate:.3f} ({found.low:.3f} to {found.high:.3f})"
        low, high = roc_band(label_P, score_P, n=n, seed=seed)
        axes.fill_between(_GRID, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(*_roc(label_P, score_P), color=colour, linewidth=2, label=text)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title=title, aspect="equal")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.legend(title="AUROC (95 % interval)", loc="lower right", frameon=False, fontsize=8)
    return to_png(figure)


def roc_band(
    label_P: NDArray[np.int64], score_P: NDArray[np.float64], *, n: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pointwise 2.5th and 97.5th percentiles of sensitivity at 101 false positive rates.

    Raises:
        UndefinedMetricError: Patients of one class only.
    """
    if len(np.unique(label_P)) < 2:
        msg = f"a ROC curve needs patients of both classes, all {len(label_P)} are of one"
        raise UndefinedMetricError(msg)
    rng = np.random.default_rng(seed)
    # Sorted once, so that a resample is two sums over how often each patient was drawn.
    order = np.argsort(-score_P, kind="stable")
    positive_P, ends = label_P[order], np.flatnonzero(np.diff(score_P[order], append=-np.inf))
    drawn: list[NDArray[np.float64]] = []
    while len(drawn) < n:
        rows = rng.integers(0, len(label_P), size=len(label_P))
        times_P = np.bincount(rows, minlength=len(label_P))[order]
        true, false = (np.cumsum(times_P * part)[ends] for part in (positive_P, 1 - positive_P))
        if true[-1] and false[-1]:
            curve = np.r_[0, false / false[-1]], np.r_[0, true / true[-1]]
            drawn.append(np.interp(_GRID, *curve))
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return low, high


def km_png(
    time_P: NDArray[np.float64],
    event_P: NDArray[np.bool_],
    high_P: NDArray[np.bool_],
    *,
    title: str = "",
    xlabel: str = "time",
) -> bytes:
    """Kaplan-Meier curves of two risk groups, with 95 % bands, numbers at risk and log-rank p.

    Args:
        time_P: Times to the event or to the end of follow-up.
        event_P: True where the event was seen.
        high_P: True for the high risk group. A group that is empty is left out, and with it p.
        title: Above the axes.
        xlabel: Under the axes; name the unit of time.

    Returns:
        A PNG.
    """
    figure, axes = new_figure(6.0, 4.8)
    ticks = _round_times(float(time_P.max()))
    for number, (name, group_P) in enumerate((("low risk", ~high_P), ("high risk", high_P))):
        _km_curve(axes, time_P[group_P], event_P[group_P], name=name, colour=COLOURS[number])
        at_risk = [int((time_P[group_P] >= tick).sum()) for tick in ticks]
        _at_risk(axes, ticks, at_risk, name=name, row=number)
    p = logrank_p(time_P, event_P, high_P)
    text = "" if p is None else "log-rank p < 0.001" if p < 0.001 else f"log-rank p = {p:.3f}"
    axes.set(xlabel=xlabel, ylabel="survival", title=title, ylim=(0, 1.03), xticks=ticks)
    axes.legend(title=text, loc="upper right", frameon=False)
    return to_png(figure)


def logrank_p(
    time_P: NDArray[np.float64], event_P: NDArray[np.bool_], high_P: NDArray[np.bool_]
) -> float | None:
    """P value of `sksurv.compare.compare_survival`; None with one group only or no event."""
    from sksurv.compare import compare_survival
    from sksurv.util import Surv

    if high_P.all() or not high_P.any() or not event_P.any():
        return None
    return float(compare_survival(Surv.from_arrays(event_P, time_P), high_P)[1])


def attention_png(
    thumbnail_HW3: NDArray[np.uint8],
    x: NDArray[np.int32],
    y: NDArray[np.int32],
    attention: NDArray[np.float32],
    *,
    tile_px_level0: int,
    width_px: int,
    height_px: int,
    title: str = "",
) -> bytes:
    """A slide beside the same slide with its tiles coloured by attention.

    Args:
        thumbnail_HW3: RGB thumbnail of the whole slide.
        x: [N] left edges of the tiles, level-0 pixels.
        y: [N] top edges of the tiles, level-0 pixels.
        attention: [N] attention; only its order within the slide is shown.
        tile_px_level0: Side of a tile in level-0 pixels.
        width_px: Width of the slide at level 0.
        height_px: Height of the slide at level 0.
        title: Above the slide.

    Returns:
        A PNG.
    """
    height, width = thumbnail_HW3.shape[:2]
    size_px = (width_px, height_px)
    shares_HW = attention_overlay(
        (height, width), x, y, attention, tile_px_level0=tile_px_level0, size_px=size_px
    )
    wide = 2 * width > height
    figure, (plain, coloured) = new_figure(9.0, 1.0 + 4.5 * min(height / width, 2.0), columns=2)
    for axes in (plain, coloured):
        axes.imshow(thumbnail_HW3)
        axes.set_axis_off()
    image = coloured.imshow(shares_HW, cmap="cividis", vmin=0, vmax=1, alpha=0.65)
    plain.set_title(title)
    coloured.set_title("attention")
    side = "horizontal" if wide else "vertical"
    bar = figure.colorbar(image, ax=[plain, coloured], orientation=side, shrink=0.5, pad=0.04)
    bar.set_label("share of the slide's tiles with less attention")
    return to_png(figure)


def attention_overlay(
    shape: tuple[int, int],
    x: NDArray[np.int32],
    y: NDArray[np.int32],
    attention: NDArray[np.float32],
    *,
    tile_px_level0: int,
    size_px: tuple[int, int],
) -> NDArray[np.float64]:
    """Attention ranks painted where the tiles are.

    Ranks and not values: attention sums to 1 over a bag, so its values depend on the bag's size.

    Args:
        shape: Height and width of the thumbnail.
        x: [N] left edges, level-0 pixels.
        y: [N] top edges, level-0 pixels.
        attention: [N].
        tile_px_level0: Side of a tile in level-0 pixels.
        size_px: Width and height of the slide at level 0.

    Returns:
        float64[H, W]: share of the slide's tiles with less attention, 0 to 1; NaN without a tile.
    """
    from scipy.stats import rankdata

    share_N = (rankdata(attention) - 1) / max(len(attention) - 1, 1)
    scale_x, scale_y = shape[1] / size_px[0], shape[0] / size_px[1]
    painted_HW = np.full(shape, np.nan)
    for left, top, share in zip(x, y, share_N, strict=True):
        columns = slice(*_span(int(left), tile_px_level0, scale_x))
        painted_HW[slice(*_span(int(top), tile_px_level0, scale_y)), columns] = share
    return painted_HW


def _span(start_px: int, length_px: int, scale: float) -> tuple[int, int]:
    """Thumbnail pixels that a tile covers, at least one."""
    first = round(start_px * scale)
    return first, max(round((start_px + length_px) * scale), first + 1)


def _roc(
    label_P: NDArray[np.int64], score_P: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False and true positive rates."""
    from sklearn.metrics import roc_curve

    false_positive, true_positive, _ = roc_curve(label_P, score_P)
    return false_positive, true_positive


def _km_curve(
    axes: Axes, time_P: NDArray[np.float64], event_P: NDArray[np.bool_], *, name: str, colour: str
) -> None:
    """One group's step curve, its 95 % band (log-log) and a tick for each censored patient."""
    from sksurv.nonparametric import kaplan_meier_estimator

    if not len(time_P):
        return
    if event_P.any():
        at, survival, (low, high) = kaplan_meier_estimator(event_P, time_P, conf_type="log-log")
        axes.fill_between(
            np.r_[0, at], np.r_[1, low], np.r_[1, high], step="post", color=colour, alpha=0.15, lw=0
        )
    else:
        at, survival = np.unique(time_P), np.ones(len(np.unique(time_P)))
    label = f"{name} (n = {len(time_P)}, events = {int(event_P.sum())})"
    axes.step(np.r_[0, at], np.r_[1, survival], where="post", color=colour, lw=2, label=label)
    censored = time_P[~event_P]
    heights = survival[np.searchsorted(at, censored)]
    axes.plot(censored, heights, linestyle="", marker="|", color=colour, markersize=7)


def _round_times(last: float) -> NDArray[np.float64]:
    """A handful of round times from 0 to the last one."""
    from matplotlib.ticker import MaxNLocator

    times = np.asarray(MaxNLocator(_RISK_TIMES).tick_values(0, last))
    return times[(times >= 0) & (times <= last)]


def _at_risk(
    axes: Axes, ticks: NDArray[np.float64], counts: list[int], *, name: str, row: int
) -> None:
    """One line of the table under the axes: patients still followed at each tick."""
    below = -0.24 - 0.07 * row
    style: dict[str, Any] = {"color": COLOURS[row], "fontsize": 9, "clip_on": False}
    place = axes.get_xaxis_transform()
    for tick, count in zip(ticks, counts, strict=True):
        axes.text(float(tick), below, str(count), transform=place, ha="center", **style)
    axes.text(-0.06, below, name, transform=axes.transAxes, ha="right", **style)
    if row == 0:
        axes.text(-0.06, below + 0.07, "at risk", transform=axes.transAxes, ha="right", fontsize=9)


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    """A figure with one axes, or with several side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns)
    for one in np.atleast_1d(axes):
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def to_png(figure: Figure) -> bytes:
    """The figure as PNG, cut to what is drawn."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return buffer.getvalue()
