"""Attention over a slide's thumbnail.

Shape letters: N tiles, H W pixels of a thumbnail.
"""

import numpy as np
from numpy.typing import NDArray

from downstream.report.plots.plots_base import new_figure, plain, to_png


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
    """Return a PNG of a slide beside the same slide with its tiles coloured by attention.

    Args:
        thumbnail_HW3: RGB thumbnail of the whole slide.
        x: [N] left edges of the tiles, level-0 pixels.
        y: [N] top edges of the tiles, level-0 pixels.
        attention: [N] attention; only its order within the slide is shown.
        tile_px_level0: side of a tile in level-0 pixels.
        width_px: width of the slide at level 0.
        height_px: height of the slide at level 0.
        title: title above the slide.

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
    """Return the attention rank of the tile at each pixel of a thumbnail.

    Ranks and not values: attention sums to 1 over a bag, so its values depend on the bag's size.

    Args:
        shape: height and width of the thumbnail.
        x: [N] left edges of the tiles, level-0 pixels.
        y: [N] top edges of the tiles, level-0 pixels.
        attention: [N] attention of the tiles.
        tile_px_level0: side of a tile in level-0 pixels.
        size_px: width and height of the slide at level 0.

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
    """Return for each tile the share [N] of other tiles with less attention, 0 to 1.

    >>> shares(np.array([0.1, 0.7, 0.2], np.float32)).tolist()
    [0.0, 1.0, 0.5]
    """
    from scipy.stats import rankdata

    share_N: NDArray[np.float64] = (rankdata(attention) - 1) / max(len(attention) - 1, 1)
    return share_N


def _span(start_px: int, length_px: int, scale: float) -> tuple[int, int]:
    """Return the first and the end pixel of a tile in a thumbnail, at least one pixel apart."""
    first = round(start_px * scale)
    return first, max(round((start_px + length_px) * scale), first + 1)
