"""Pictures of an evaluation as PNG bytes.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; each kind of embedding has
its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from downstream.report.plots import new_figure, to_png

COLOURS = {
    "student": "#0072B2",
    "single_teacher": "#56B4E9",
    "undistilled": "#999999",
    "pca": "#009E73",
    "teacher": "#D55E00",
}
ROBUST = {
    "all": "cosine, all pairs",
    "cross_scanner": "top 10, other scanner",
    "cross_stain": "top 10, other stain",
    "cross_both": "top 10, both",
}

Embedding = Mapping[str, Any]


def bars_png(embeddings: Sequence[Embedding], teacher: str) -> bytes:
    """Draw the read-out cosine of every embedding with a teacher, one panel per mpp, as PNG.

    Ticks are baselines; whiskers are the range over seeds.
    """
    shown = [e for e in embeddings if teacher in e["fidelity"] and e["name"] != teacher]
    mpps = [mpp for mpp in shown[0]["fidelity"][teacher] if mpp != "all"] if shown else []
    figure, panels = _figure(1 + 4.0 * max(1, len(mpps)), 0.9 + 0.36 * len(shown), len(mpps) or 1)
    for axes, mpp in zip(panels, mpps, strict=False):
        for row, embedding in enumerate(shown):
            numbers = embedding["fidelity"][teacher].get(mpp)
            if numbers and numbers["cosine"]["mean"] is not None:
                _bar(axes, row, embedding["kind"], numbers["cosine"])
                base = numbers["baseline"]["mean"]
                axes.plot([base, base], [row - 0.42, row + 0.42], color="black", linewidth=1.6)
        axes.set_title(f"{teacher} at {mpp} mpp", fontsize=10)
        axes.set(xlabel="cosine on held-out tiles", xlim=(_axis_start(shown, teacher), 1))
        _names(axes, [e["name"] for e in shown], show=axes is panels[0])
    return to_png(figure)


def _axis_start(shown: Sequence[Embedding], teacher: str) -> float:
    """Return the start of the axis: a little below the lowest number, never above 0.9."""
    cosines = [
        numbers[name]["mean"]
        for e in shown
        for numbers in e["fidelity"][teacher].values()
        for name in ("cosine", "baseline")
        if numbers[name]["mean"] is not None
    ]
    return min(0.9, min(cosines, default=0.0) - 0.05)


def robustness_png(embeddings: Sequence[Embedding]) -> bytes:
    """Draw PLISM's four medians of every embedding that was run on perturbed tiles, as PNG."""
    shown = [e for e in embeddings if e.get("robustness")]
    figure, panels = _figure(11.5, 1.0 + 0.36 * len(shown), len(ROBUST))
    for axes, (kind, title) in zip(panels, ROBUST.items(), strict=True):
        name = "cosine" if kind == "all" else "top10"
        for row, embedding in enumerate(shown):
            _bar(axes, row, embedding["kind"], embedding["robustness"][kind][name])
        axes.set_title(title, fontsize=10)
        axes.set(xlim=(0, 1.02))
        _names(axes, [e["name"] for e in shown], show=axes is panels[0])
    return to_png(figure)


def amortisation_png(amortisation: Mapping[str, Any]) -> bytes:
    """Draw the cost of training by passes over the tiles, with cached and recomputed teachers."""
    figure, (axes,) = _figure(6.4, 4.0, 1)
    for name, label, colour in (
        ("recomputed_s", "teachers run in every pass", "#D55E00"),
        ("cached_s", "teachers run once", "#0072B2"),
    ):
        hours = [seconds / 3600 for seconds in amortisation[name]]
        axes.plot(
            amortisation["passes"], hours, marker="o", markersize=4, label=label, color=colour
        )
    axes.axvline(amortisation["epochs"], color="0.6", linewidth=1, linestyle="--")
    axes.annotate(
        f"one student of {amortisation['epochs']:.0f} epochs",
        (amortisation["epochs"], 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(4, 0),
        textcoords="offset points",
        fontsize=8,
        color="0.4",
    )
    axes.set(xscale="log", yscale="log", xlabel="epochs x students", ylabel="hours")
    axes.legend(frameon=False)
    return to_png(figure)


def _bar(axes: Axes, row: int, kind: str, spread: Mapping[str, float | None]) -> None:
    mean, low, high = (spread[name] for name in ("mean", "min", "max"))
    if mean is None or low is None or high is None:
        return
    axes.barh(row, mean, height=0.62, color=COLOURS[kind])
    if low < high:
        axes.plot([low, high], [row, row], color="black", linewidth=1)
    axes.text(high, row, f" {mean:.3f}", va="center", fontsize=8, clip_on=False)


def _names(axes: Axes, names: Sequence[str], *, show: bool) -> None:
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), names if show else [""] * len(names), fontsize=9)


def _figure(width: float, height: float, columns: int) -> tuple[Figure, list[Axes]]:
    """Make a figure of panels side by side."""
    figure, panels = new_figure(width, height, columns)
    return figure, list(np.atleast_1d(panels))
