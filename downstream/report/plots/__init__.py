"""Figures, drawn on matplotlib's Agg canvas."""

from downstream.report.plots.plots_base import new_figure, to_png, to_svg

__all__ = [
    "new_figure",
    "to_png",
    "to_svg",
]
