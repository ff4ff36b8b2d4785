"""The start and the end of every figure: a canvas, and an SVG or a PNG.

Drawn with matplotlib's objects on the Agg canvas and no pyplot, so nothing global changes and
nothing needs a display. Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

import io
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTEXT = "0.8"
"""Colour of what stands behind a small multiple: the other arms."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""One colour per line; a figure with more lines leaves the others out and says so."""

_DPI = 130
MOST_MARKS = 2000
"""More points than this are drawn as one picture inside an SVG, whose size is then bounded."""
_STYLE: dict[str, Any] = {
    # text stays text: it can be read, searched and edited, in a font of the reader's machine. The
    # figure is laid out for the widest of the fonts, so that no other one is cut off.
    "svg.fonttype": "none",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    # the same figure has the same bytes
    "svg.hashsalt": "slidelake",
}


def new_figure(width: float, height: float, columns: int = 1) -> "tuple[Figure, Any]":
    """Return a figure with one axes, or with several side by side.

    Args:
        width: width in inches.
        height: height in inches.
        columns: number of axes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns)
    for one in np.atleast_1d(axes):
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def to_svg(figure: "Figure") -> bytes:
    """Return the figure as the bytes of an SVG, cropped to its content, on white.

    The background is part of the figure: it can be read on a dark page, too.
    """
    from matplotlib import rc_context

    buffer, style = io.BytesIO(), cast("Any", _STYLE)  # the stubs name every setting
    with rc_context(style):
        figure.savefig(
            buffer, format="svg", bbox_inches="tight", facecolor="white", metadata={"Date": None}
        )
    return buffer.getvalue()


def to_png(figure: "Figure") -> bytes:
    """Return the figure as the bytes of a PNG, cropped to its content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return buffer.getvalue()


def plain(text: str) -> str:
    r"""Return text with escaped dollar signs, which matplotlib would read as mathematics.

    >>> plain("US$ or A$")
    'US\\$ or A\\$'
    """
    return text.replace("$", r"\$")


def shortened(text: str, most: int = 34) -> str:
    """Return a name shortened to at most `most` characters, the middle left out.

    >>> shortened("virchow2+uni2+gigapath / hierarchical", 20)
    'virchow2+un...chical'
    """
    if len(text) <= most:
        return text
    head = (most - 3) * 2 // 3
    return f"{text[:head]}...{text[-(most - 3 - head) :]}"
