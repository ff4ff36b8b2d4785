"""Figures as PNG bytes that other code draws too: ROC, Kaplan-Meier, attention over a thumbnail.

Shape letters: S rows of predictions, P patients, N tiles, H W pixels of a thumbnail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from downstream.plots_bands import GRID, roc_band, roc_points
from downstream.plots_base import COLOURS, new_figure, plain, shortened, to_png

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from downstream.plots_bands import Scores

    Estimates = Mapping[str, tuple[float, float, float]]

_RISK_TIMES = 5


def roc_png(
    curves: Mapping[str, Scores],
    *,
    estimates: Estimates | None = None,
    title: str = "",
    n: int = 500,
    seed: int = 0,
) -> bytes:
    """ROC curves with pointwise 95 % bands from a bootstrap over patients.

    Args:
        curves: Name -> scores.
        estimates: Name -> (AUROC, low, high) for the legend, where they are known.
        title: Above the axes.
        n: Resamples of the bands.
        seed: Of the bootstrap.

    Returns:
        A PNG.

    Raises:
        UndefinedMetricError: A curve of one class only.
    """
    figure, axes = new_figure(5.2, 5.0)
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle="--")
    for number, (name, scores) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        axes.fill_between(
            GRID, *roc_band(scores, n=n, seed=seed), color=colour, alpha=0.15, linewidth=0
        )
        axes.plot(*roc_points(scores), color=colour, lw=2, label=named(name, estimates))
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title=plain(title), aspect="equal")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    legend_title = "AUROC (95 % interval)" if estimates else ""
    axes.legend(title=legend_title, loc="lower right", frameon=False, fontsize=8, title_fontsize=8)
    return to_png(figure)


def named(name: str, estimates: Estimates | None) -> str:
    """A legend's line: the name, and the number with its interval if it is known.

    >>> named("uni2", {"uni2": (0.8, 0.7, 0.9)}), named("uni2", None)
    ('uni2: 0.800 (0.700 to 0.900)', 'uni2')
    """
    if not estimates or name not in estimates:
        return plain(shortened(name))
    estimate, low, high = estimates[name]
    return f"{plain(shortened(name))}: {estimate:.3f} ({low:.3f} to {high:.3f})"


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
    axes.set(xlabel=plain(xlabel), ylabel="survival", title=plain(title), ylim=(0, 1.03))
    axes.set(xticks=ticks)
    axes.legend(title=text, loc="best", frameon=False)
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
    figure, (plain_, coloured) = new_figure(9.0, 1.0 + 4.5 * min(height / width, 2.0), columns=2)
    for axes in (plain_, coloured):
        axes.imshow(thumbnail_HW3)
        axes.set_axis_off()
    image = coloured.imshow(shares_HW, cmap="cividis", vmin=0, vmax=1, alpha=0.65)
    plain_.set_title(plain(title))
    coloured.set_title("attention")
    side = "horizontal" if wide else "vertical"
    bar = figure.colorbar(image, ax=[plain_, coloured], orientation=side, shrink=0.5, pad=0.04)
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
    scale_x, scale_y = shape[1] / size_px[0], shape[0] / size_px[1]
    painted_HW = np.full(shape, np.nan)
    for left, top, share in zip(x, y, shares(attention), strict=True):
        columns = slice(*_span(int(left), tile_px_level0, scale_x))
        painted_HW[slice(*_span(int(top), tile_px_level0, scale_y)), columns] = share
    return painted_HW


def shares(attention: NDArray[np.float32]) -> NDArray[np.float64]:
    """Share of the other tiles with less attention [N], 0 to 1; equal ones have the same.

    >>> shares(np.array([0.1, 0.7, 0.2], np.float32)).tolist()
    [0.0, 1.0, 0.5]
    """
    from scipy.stats import rankdata

    share_N: NDArray[np.float64] = (rankdata(attention) - 1) / max(len(attention) - 1, 1)
    return share_N


def _span(start_px: int, length_px: int, scale: float) -> tuple[int, int]:
    """Thumbnail pixels that a tile covers, at least one."""
    first = round(start_px * scale)
    return first, max(round((start_px + length_px) * scale), first + 1)


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
