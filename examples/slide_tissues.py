"""How tissue looks at 0.5 mpp: stroma, glands, sheets of cells and fat, drawn cell by cell.

Each function draws a periodic texture of both stains. It comes with the way from every pixel to
the centre of the gland or cell that owns it: see `Texture`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.spatial import cKDTree

from examples.slide_drawing import (
    MAX_REACH_PX,
    Floats,
    Nuclei,
    Offsets,
    Pixels,
    Points,
    Sheet,
    draw_nuclei,
    evenly_along,
    jittered,
    noise,
    scattered,
    tiled_noise,
    way_to,
    wobbly,
)

#: A density of this value in a texture is an optical density scale of 1.0.
UNIT_DENSITY = 128
#: Textures are wrapped by this much at the right and below: any tile is then a plain slice.
WRAP_PX = 320

_FIBRE_DIRECTIONS = (0.5, 1.9)  # radians


@dataclass(frozen=True, kw_only=True)
class Texture:
    """One tissue class; all arrays cover the period plus `WRAP_PX` in both directions.

    Attributes:
        haematoxylin: (H, W) density of the blue stain, in 1 / `UNIT_DENSITY`.
        eosin: (H, W) density of the pink stain, in 1 / `UNIT_DENSITY`.
        shift: (H, W, 2) pixels along x and y to the centre of the owning object; between objects
            a small smooth wander, so that borders there are ragged too.
    """

    haematoxylin: Pixels
    eosin: Pixels
    shift: Offsets


class Ground:
    """The noise that all classes share: grain, chromatin and the fibres of the stroma."""

    def __init__(self, rng: np.random.Generator, period: int) -> None:
        self.period = period
        self.fine = tiled_noise(rng, period, 0.6, 17)
        self.middle = tiled_noise(rng, period, 1.6, 3)
        self.chromatin = tiled_noise(rng, period, 0.9, 73)
        wander = [tiled_noise(rng, period, 2.0, 8) * 11 for _ in range(2)]
        self.wander: Offsets = np.clip(np.stack(wander, -1), -60, 60).astype(np.int8)
        #: Where near 1 the fibres run along the first direction, where near 0 along the second.
        self.bend: Floats = 1 / (1 + np.exp(-3 * tiled_noise(rng, period, 2.0, 2)))
        first, second = (
            noise(rng, period, 1.3, lowest=period / 170, along=a) for a in _FIBRE_DIRECTIONS
        )
        fibre = self.bend * first + (1 - self.bend) * second
        cleft = np.clip((-1.15 - fibre) * 3, 0, 1)
        collagen = 60 + 17 * fibre + 5 * self.fine + 6 * self.middle
        self.stroma_eosin: Floats = collagen * (1 - 0.8 * cleft)
        self.stroma_haematoxylin: Floats = (12 + 4 * fibre + 2 * self.fine) * (1 - 0.6 * cleft)

    def nuclear(self, sheet: Sheet) -> Floats:
        """Return the density of drawn nuclei with the mottle of chromatin."""
        return np.asarray(sheet.folded() * (1 + 0.2 * self.chromatin), np.float32)

    def texture(self, haematoxylin: Floats, eosin: Floats, shift: Offsets | None = None) -> Texture:
        """Wrap finished densities as a `Texture`; `shift` is only the wander if None."""
        return Texture(
            haematoxylin=wrapped(as_pixels(haematoxylin)),
            eosin=wrapped(as_pixels(eosin)),
            shift=np.pad(
                self.wander if shift is None else shift,
                ((0, WRAP_PX), (0, WRAP_PX), (0, 0)),
                "wrap",
            ),
        )


def as_pixels(density: Floats) -> Pixels:
    """Cut densities to the range of a texture."""
    return np.clip(density, 0, 255).astype(np.uint8)


def wrapped(pixels: Pixels) -> Pixels:
    """Continue a periodic texture by `WRAP_PX` at the right and below."""
    return np.pad(pixels, (0, WRAP_PX), "wrap")


Draw = Callable[[np.random.Generator, Ground], Texture]


def _spindle_nuclei(rng: np.random.Generator, ground: Ground) -> Floats:
    """Return the nuclei of fibroblasts, along the fibres."""
    sheet = Sheet(ground.period)
    places = jittered(rng, ground.period, 52, 0.5)
    column, row = (places.astype(int) % ground.period).T
    first, second = np.rad2deg(_FIBRE_DIRECTIONS)
    degrees = np.where(ground.bend[row, column] > 0.5, first, second)
    look = Nuclei(diameter_px=10, elongation=3.2, density=125, pleomorphism=0.18)
    draw_nuclei(rng, sheet, places, look, degrees=degrees, own=False)
    return ground.nuclear(sheet)


def _draw_capillary(
    rng: np.random.Generator, wall: Sheet, inside: Sheet, blood: Sheet, place: Points, radius: float
) -> None:
    outline = wobbly(rng, rng.uniform(1.0, 2.0), 0.2) * radius
    inside.polygon(place + outline, 250)
    rim, degrees = evenly_along(rng, outline * 1.08, 26)
    flat = Nuclei(diameter_px=8, elongation=2.6, density=140)
    draw_nuclei(rng, wall, place + rim, flat, degrees=degrees + 90, own=False)
    cells = rng.uniform(-radius, radius, (int(radius * 1.6), 2))
    cells = cells[np.hypot(*cells.T) < 0.62 * radius]
    count = len(cells)
    size = np.full((count, 2), 6.2)
    blood.ellipses(place + cells, size, np.zeros(count), rng.normal(120, 10, count))


def stroma(rng: np.random.Generator, ground: Ground) -> Texture:
    """Draw collagen with fibroblasts and a few capillaries filled with red cells."""
    period = ground.period
    wall, inside, blood = Sheet(period), Sheet(period), Sheet(period)
    radii = rng.uniform(14, 30, 24 * period**2 // 2048**2)
    for x, y, radius in scattered(rng, period, radii, 120):
        _draw_capillary(rng, wall, inside, blood, np.array([x, y]), radius)
    hollow = inside.folded() > 200
    tissue = np.maximum(_spindle_nuclei(rng, ground), ground.stroma_haematoxylin)
    haematoxylin = np.maximum(np.where(hollow, 2, tissue), ground.nuclear(wall))
    eosin = np.where(hollow, np.maximum(blood.folded(), 4), ground.stroma_eosin)
    return ground.texture(haematoxylin, eosin)


@dataclass(frozen=True, kw_only=True)
class Glands:
    """The appearance of the glands of a class.

    Attributes:
        radius_px: least and greatest outer radius.
        wall: height of the epithelium in diameters of a nucleus.
        layers: number of rows of nuclei in the epithelium.
        roughness: deviation of the outline from an ellipse.
        gap_px: least width of the stroma between neighbours.
        nuclei: appearance of their nuclei.
        cytoplasm: haematoxylin and eosin density of the cytoplasm.
    """

    radius_px: tuple[float, float]
    wall: float
    layers: int
    roughness: float
    gap_px: float
    nuclei: Nuclei
    cytoplasm: tuple[float, float]


def _draw_gland(
    rng: np.random.Generator, cells: Sheet, wall: Sheet, place: Points, radius: float, look: Glands
) -> None:
    """Draw one gland: nuclei and owner on one sheet, wall (100) and lumen (250) on another."""
    shape = wobbly(rng, rng.uniform(1.0, 1.5), look.roughness)
    outline = shape * min(radius, MAX_REACH_PX / np.hypot(*shape.T).max())
    distance = np.hypot(*outline.T)

    def inset(depth_px: float) -> Points:
        line: Points = outline * np.clip(1 - depth_px / distance, 0.08, 1)[:, None]
        return line

    diameter = look.nuclei.diameter_px
    ragged = 1 + rng.normal(0, 0.035, (len(outline), 1))
    cells.own_polygon(place + outline, place)
    wall.polygon(place + outline, 100)
    wall.polygon(place + inset(diameter * look.wall) * ragged, 250)
    for layer in range(look.layers):
        line = inset(diameter * (0.62 + 0.85 * layer))
        places, degrees = evenly_along(rng, line, diameter * 0.98)
        draw_nuclei(rng, cells, place + places, look.nuclei, degrees=degrees, own=False)


def glandular(look: Glands) -> Draw:
    """Draw glands in stroma."""

    def draw(rng: np.random.Generator, ground: Ground) -> Texture:
        cells, wall = Sheet(ground.period), Sheet(ground.period)
        filling = ground.period**2 / (np.pi * np.mean(look.radius_px) ** 2)
        radii = rng.uniform(*look.radius_px, int(filling))
        for x, y, radius in scattered(rng, ground.period, radii, look.gap_px):
            _draw_gland(rng, cells, wall, np.array([x, y]), radius, look)
        drawn, inside = ground.nuclear(cells), wall.folded()
        epithelium, lumen = inside > 50, (inside > 175) & (drawn < 25)
        blue, pink = look.cytoplasm
        between = np.maximum(ground.stroma_haematoxylin, _spindle_nuclei(rng, ground))
        haematoxylin = np.where(epithelium, blue + 4 * ground.middle, between)
        haematoxylin = np.maximum(np.where(lumen, 2, haematoxylin), drawn)
        cytoplasm = pink + 6 * ground.middle + 4 * ground.fine
        eosin = np.where(epithelium, cytoplasm, ground.stroma_eosin)
        eosin = np.where(lumen, 5 + 3 * np.maximum(ground.middle, 0), eosin)
        return ground.texture(haematoxylin, eosin, cells.shift(ground.wander))

    return draw


def sheet_of_cells(
    look: Nuclei, *, step_px: float, blue: float, pink: float, mottle: float
) -> Draw:
    """Draw cells without an order, `step_px` apart, in cytoplasm of these densities."""

    def draw(rng: np.random.Generator, ground: Ground) -> Texture:
        cells = Sheet(ground.period)
        draw_nuclei(rng, cells, jittered(rng, ground.period, step_px, 0.36), look)
        haematoxylin = blue + mottle * ground.middle + 3 * ground.fine
        eosin = pink + 1.6 * mottle * ground.middle + 5 * ground.fine
        haematoxylin = np.maximum(haematoxylin, ground.nuclear(cells))
        return ground.texture(haematoxylin, eosin, cells.shift(ground.wander))

    return draw


def fat(rng: np.random.Generator, ground: Ground) -> Texture:
    """Draw empty cells with a thin membrane: the borders of a Voronoi diagram."""
    coarse = 4  # asking the tree for every pixel would take longer than all else together
    side = ground.period // coarse
    places = jittered(rng, ground.period, 92, 0.22) % ground.period
    tree = cKDTree(places / coarse, boxsize=side)
    pixels = np.stack(np.meshgrid(*[np.arange(side) + 0.5] * 2), -1).reshape(-1, 2)
    distance, nearest = tree.query(pixels, k=2)
    owner = np.kron(nearest[:, 0].reshape(side, side), np.ones((coarse, coarse), int))
    apart = (distance[:, 1] - distance[:, 0]).reshape(side, side).astype(np.float32) * coarse
    # Wrapped by a cell before enlarging: the interpolation at the seam is then periodic too.
    enlarged = cv2.resize(np.pad(apart, 1, "wrap"), None, fx=coarse, fy=coarse)
    membrane = np.clip(1.9 - enlarged[coarse:-coarse, coarse:-coarse] / 3.5, 0, 1)
    cells = Sheet(ground.period)
    flat = Nuclei(diameter_px=9, elongation=2.6, density=125, spread=15)
    draw_nuclei(rng, cells, jittered(rng, ground.period, 150, 0.5), flat, own=False)
    haematoxylin = membrane * np.maximum(ground.nuclear(cells), 8) + 1
    eosin = membrane * (40 + 8 * ground.fine) + 2
    return ground.texture(haematoxylin, eosin, way_to(places, owner))
