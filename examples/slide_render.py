"""From the layout of a slide to its pixels, tile by tile.

Densities of two stains become colours by the law of Beer and Lambert, through a table of all
256 x 256 pairs per slide. A tile without tissue or ink is one of a few tiles of bare glass that
are encoded once; rendering the others takes about 6 ms each, which is most of the work.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import numpy.typing as npt

from examples.slide_drawing import Floats, Pixels
from examples.slide_layout import STEP_PX, Layout
from examples.slide_textures import (
    FAT,
    HIGH_GRADE,
    LOW_GRADE,
    LYMPHOID,
    NECROSIS,
    NORMAL_GLAND,
    STROMA,
    Library,
)
from examples.slide_tissues import UNIT_DENSITY
from examples.slide_writer import TILE_PX, encode_tile

#: Optical density of haematoxylin and of eosin in R, G, B (Ruifrok and Johnston, 2001).
_STAINS = np.array([[0.644, 0.717, 0.267], [0.093, 0.954, 0.283]])
#: What a site does to both stains: strengths, and shift of their colours.
SITE_STRENGTHS = {"A": (1.05, 0.94), "B": (0.93, 1.08)}
SITE_SHIFTS = {
    "A": ((0.02, -0.02, 0.02), (-0.02, 0.01, 0.03)),
    "B": ((-0.03, 0.02, -0.02), (0.04, -0.02, -0.02)),
}

#: Stroma lies below everything; glands come last, since a cell of a sheet may not lie in a lumen.
_PAINT_ORDER = (FAT, NECROSIS, HIGH_GRADE, LYMPHOID, NORMAL_GLAND, LOW_GRADE)

_PSF_SIGMA_PX = 0.7
_BLUR_SIGMA_PX = 4.0
_NOISE_PX = 1024
_GLASS_TILES = 8


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Inputs that a tile is rendered from.

    Attributes:
        layout: the maps of the slide.
        library: the textures of all classes.
        origin: place of the slide's corner in the textures, x and y.
        colours: (65536, 3) colour of every pair of densities, haematoxylin * 256 + eosin.
        grain: seed of the sensor noise.
    """

    layout: Layout
    library: Library
    origin: tuple[int, int]
    colours: Pixels
    grain: int


def stain_colours(rng: np.random.Generator, site: str) -> Pixels:
    """Return the colour of every pair of densities on one slide.

    Args:
        rng: the source of differences between the slides of a site.
        site: name of the site, a key of `SITE_STRENGTHS`.

    Returns:
        The colours (65536, 3) R, G, B, to be indexed with haematoxylin * 256 + eosin.
    """
    stains = _STAINS + SITE_SHIFTS[site] + rng.normal(0, 0.02, (2, 3))
    strengths = SITE_STRENGTHS[site] * np.exp(rng.normal(0, 0.09, 2))
    glass = np.array([244, 243, 245]) + rng.normal(0, 1.5, 3)
    scale = np.arange(256) / UNIT_DENSITY
    blue = strengths[0] * scale[:, None, None] * stains[0]
    pink = strengths[1] * scale[None, :, None] * stains[1]
    colours: Pixels = np.clip(glass * np.exp(-1.05 * (blue + pink)), 0, 255).astype(np.uint8)
    return colours.reshape(-1, 3)


@cache
def _noise_sheet() -> npt.NDArray[np.int8]:
    """Return sensor noise, longer by one tile so that the noise of any tile is a plain slice."""
    side = _NOISE_PX + TILE_PX
    noise = np.random.default_rng(5).normal(0, 1.6, (side, side, 3))
    return np.round(noise).astype(np.int8)


def _with_noise(rgb: Pixels, rng: np.random.Generator) -> Pixels:
    x, y = rng.integers(0, _NOISE_PX, 2)
    noise = _noise_sheet()[y : y + TILE_PX, x : x + TILE_PX]
    noisy: Pixels = cv2.add(rgb, noise, dtype=cv2.CV_8U)
    return noisy


def _sampled(field: Floats, x_px: int, y_px: int, side_px: int) -> Floats:
    """Interpolate a layout map at the pixels of a square."""
    step = 1 / STEP_PX
    way = np.array(
        [[step, 0, (x_px + 0.5) * step - 0.5], [0, step, (y_px + 0.5) * step - 0.5]], np.float32
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    sampled: Floats = cv2.warpAffine(
        field, way, (side_px, side_px), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return sampled


def _cells(
    field: npt.NDArray[np.generic], x_px: int, y_px: int, side_px: int, reach_px: int
) -> npt.NDArray[np.generic]:
    """Return the cells of a layout map under a square and up to `reach_px` around it."""
    top, left = ((at - reach_px) // STEP_PX for at in (y_px, x_px))
    bottom, right = ((at + side_px + reach_px) // STEP_PX + 1 for at in (y_px, x_px))
    return field[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]


def _window(scene: Scene, x_px: int, y_px: int, side_px: int) -> tuple[slice, slice]:
    """Return the rows and columns of the textures that a square covers."""
    period = scene.library.period
    u, v = (scene.origin[0] + x_px) % period, (scene.origin[1] + y_px) % period
    return slice(v, v + side_px), slice(u, u + side_px)


def _densities(scene: Scene, x_px: int, y_px: int, side_px: int) -> tuple[Pixels, Pixels]:
    """Return the haematoxylin and eosin of a square, as if all of it were tissue."""
    classes = scene.layout.classes
    window = _window(scene, x_px, y_px, side_px)
    rows = np.arange(y_px, y_px + side_px, dtype=np.int32)[:, None]
    columns = np.arange(x_px, x_px + side_px, dtype=np.int32)[None]
    ground = scene.library.classes[STROMA]
    haematoxylin, eosin = ground.haematoxylin[window].copy(), ground.eosin[window].copy()
    present = set(np.unique(_cells(classes, x_px, y_px, side_px, 128)).tolist())
    for number in _PAINT_ORDER:
        if number not in present:
            continue
        texture = scene.library.classes[number]
        shift = texture.shift[window]
        row = np.clip((rows + shift[..., 1]) // STEP_PX, 0, classes.shape[0] - 1)
        column = np.clip((columns + shift[..., 0]) // STEP_PX, 0, classes.shape[1] - 1)
        is_class = (
            classes.take(row * classes.shape[1] + column) == number
        )  # 3 x faster than [row, column]
        np.copyto(haematoxylin, texture.haematoxylin[window], where=is_class)
        np.copyto(eosin, texture.eosin[window], where=is_class)
    density = _sampled(scene.layout.lymphocytes, x_px, y_px, side_px)
    shown = (scene.library.rank[window] < density) & (eosin > 14)  # not in lumens
    np.maximum(haematoxylin, scene.library.lymphocytes[window], out=haematoxylin, where=shown)
    return haematoxylin, eosin


def _stained(scene: Scene, x_px: int, y_px: int, side_px: int) -> Pixels:
    """Return the stained section in focus, (side, side, 3) R, G, B."""
    layout = scene.layout
    haematoxylin, eosin = _densities(scene, x_px, y_px, side_px)
    inside = _sampled(layout.tissue, x_px, y_px, side_px)
    # Steep and ragged, so that the soft edge of the map is a torn edge on the slide.
    torn = scene.library.classes[STROMA].shift[_window(scene, x_px, y_px, side_px)][..., 0]
    alpha = np.clip((inside - 0.5) * 6 + 0.5 + np.clip(torn / 12, -2, 2), 0, 1)
    amount = _sampled(layout.thickness, x_px, y_px, side_px) * alpha
    blue = cv2.multiply(haematoxylin, amount, dtype=cv2.CV_8U).astype(np.uint16)
    pink = cv2.multiply(eosin, amount, dtype=cv2.CV_8U)
    colours = scene.colours.take((blue << 8) | pink, axis=0)  # 4 x faster than brackets
    rgb: Pixels = cv2.GaussianBlur(colours, (0, 0), _PSF_SIGMA_PX)
    return rgb


def render(scene: Scene, x_px: int, y_px: int) -> Pixels:
    """Render the tile with its corner at the given level-0 pixel, without sensor noise."""
    layout = scene.layout
    blurred = bool(_cells(layout.blur, x_px, y_px, TILE_PX, STEP_PX).any())
    pad = 16 if blurred else 4  # what the filters reach over the edge of the tile
    side = TILE_PX + 2 * pad
    rgb = _stained(scene, x_px - pad, y_px - pad, side)
    if blurred:
        weight = _sampled(layout.blur, x_px - pad, y_px - pad, side)[..., None]
        soft = cv2.GaussianBlur(rgb, (0, 0), _BLUR_SIGMA_PX)
        rgb = (rgb * (1 - weight) + soft * weight).astype(np.uint8)
    rgb = rgb[pad:-pad, pad:-pad]
    if _cells(layout.pen, x_px, y_px, TILE_PX, STEP_PX).any():
        ink = _sampled(layout.pen, x_px, y_px, TILE_PX)[..., None]
        rgb = (rgb * (1 - ink * (1 - np.array(layout.pen_colour, np.float32)))).astype(np.uint8)
    return rgb


def _is_glass(scene: Scene, x_px: int, y_px: int) -> bool:
    maps = (scene.layout.tissue, scene.layout.pen)
    return not any(_cells(field, x_px, y_px, TILE_PX, STEP_PX).any() for field in maps)


def encoded_tiles(scene: Scene, width_px: int, height_px: int) -> Iterator[tuple[bytes, Pixels]]:
    """Render and encode level 0, row by row.

    Args:
        scene: the scene to render.
        width_px: width of the slide; the last tile of a row may reach beyond it.
        height_px: height of the slide.

    Yields:
        The abbreviated JPEG stream and the pixels of each tile.
    """
    rng = np.random.default_rng(scene.grain)
    bare = np.full((TILE_PX, TILE_PX, 3), scene.colours[0], np.uint8)
    glass = [_with_noise(bare, rng) for _ in range(_GLASS_TILES)]
    encoded_glass = [encode_tile(rgb) for rgb in glass]
    for y_px in range(0, height_px, TILE_PX):
        for x_px in range(0, width_px, TILE_PX):
            if _is_glass(scene, x_px, y_px):
                pick = int(rng.integers(_GLASS_TILES))
                yield encoded_glass[pick], glass[pick]
            else:
                rgb = _with_noise(render(scene, x_px, y_px), rng)
                yield encode_tile(rgb), rgb
