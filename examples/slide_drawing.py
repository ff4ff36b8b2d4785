"""Noise, places and cells for tissue textures: everything is drawn on a torus.

Sides are powers of two, so that a texture repeats without a seam and its arithmetic stays cheap.
Lengths are pixels at 0.5 mpp; densities are stain densities from 0 to 255.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]
Points = npt.NDArray[np.float64]
Offsets = npt.NDArray[np.int8]

#: Further than this from its centre no pixel of an object may lie (the way is stored in int8).
MAX_REACH_PX = 126

_SUBPIXEL = 3  # cv2 takes coordinates as fixed point with this many fractional bits


# ------------------------------------------------------------------ noise and places


def noise(
    rng: np.random.Generator,
    period: int,
    slope: float,
    *,
    lowest: float,
    along: float | None = None,
) -> Floats:
    """Return periodic power-law noise with mean 0 and standard deviation 1.

    Args:
        rng: the source of the phases.
        period: side of the field in pixels.
        slope: slope of the spectrum: the amplitude falls as frequency to the minus `slope`.
        lowest: cycles per period below which the amplitude stays level.
        along: direction of the fibres in radians, seven times longer than wide; None: no fibres.

    Returns:
        The noise field, (period, period).
    """
    fy = np.fft.fftfreq(period)[:, None] * period
    fx = np.fft.rfftfreq(period)[None] * period
    if along is None:
        radius = np.hypot(fx, fy)
    else:
        lengthwise = np.cos(along) * fx + np.sin(along) * fy
        radius = np.hypot(7 * lengthwise, -np.sin(along) * fx + np.cos(along) * fy)
    amplitude = (1.0 / np.maximum(radius, lowest) ** slope).astype(np.float32)
    amplitude[0, 0] = 0
    phase = np.exp(2j * np.pi * rng.random(amplitude.shape, np.float32)).astype(np.complex64)
    field = np.fft.irfft2(amplitude * phase, s=(period, period)).astype(np.float32)
    return np.asarray((field - field.mean()) / field.std(), np.float32)


def tiled_noise(
    rng: np.random.Generator, period: int, slope: float, lowest_per_1024: float
) -> Floats:
    """Repeat noise with a period of 1024 px or less: fine grain needs no longer period."""
    side = min(period, 1024)
    field = noise(rng, side, slope, lowest=lowest_per_1024 * side / 1024)
    return np.tile(field, (period // side, period // side))


def jittered(rng: np.random.Generator, period: int, step: float, jitter: float) -> Points:
    """Return places on a hexagonal grid, each moved by up to `jitter` steps; sorted by rows."""
    columns, rows = max(1, round(period / step)), max(2, 2 * round(period / step / 1.732))
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float64)
    x += 0.5 * (y % 2)
    places = np.stack([x * period / columns, y * period / rows], -1).reshape(-1, 2)
    return places + rng.uniform(-jitter, jitter, places.shape) * step


def scattered(rng: np.random.Generator, period: int, radii: Points, gap: float) -> Points:
    """Place discs on a torus, largest first; return x, y and radius of the discs that fit."""
    placed = np.empty((0, 3))
    for radius in np.sort(radii)[::-1]:
        for place in rng.uniform(0, period, (12, 2)):
            apart = np.abs(placed[:, :2] - place)
            apart = np.minimum(apart, period - apart)
            if np.all(np.hypot(apart[:, 0], apart[:, 1]) > placed[:, 2] + radius + gap):
                placed = np.vstack([placed, [*place, radius]])
                break
    return placed


# ------------------------------------------------------------------ drawing


def fixed_point(level: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """Convert pixels to the fixed-point coordinates of cv2."""
    return np.round(np.asarray(level, np.float64) * (1 << _SUBPIXEL)).astype(np.int32)


class Sheet:
    """A periodic drawing sheet: objects are drawn with a margin that is folded back.

    Attributes:
        period: side of the sheet in pixels, a power of two.
        margin: pixels that an object may reach over the edge.
        density: (H, W) density of the drawing, antialiased; where margins meet the darker wins.
        owner: (H, W) number of the object that owns the pixel, 0 for none.
        centres: the centre of each object, in drawing order.
    """

    def __init__(self, period: int) -> None:
        self.period = period
        self.margin = 160
        side = period + 2 * self.margin
        self.density: Pixels = np.zeros((side, side), np.uint8)
        self.owner: npt.NDArray[np.int32] = np.zeros((side, side), np.int32)
        self.centres: list[Points] = []

    def ellipses(
        self, places: Points, half_axes: Points, degrees: Points, densities: Points
    ) -> None:
        """Draw filled ellipses in the given order.

        Args:
            places: (K, 2) centres, x and y.
            half_axes: (K, 2) half axes, the first along `degrees`.
            degrees: (K,) direction of the first axis.
            densities: (K,) values to draw.
        """
        centres = fixed_point(places + self.margin).tolist()
        axes = np.maximum(1, fixed_point(half_axes)).tolist()
        values = np.clip(densities, 0, 255).tolist()
        for centre, axis, angle, level in zip(centres, axes, degrees.tolist(), values, strict=True):
            cv2.ellipse(
                self.density, centre, axis, angle, 0, 360, level, -1, cv2.LINE_AA, _SUBPIXEL
            )

    def own_ellipses(self, places: Points, half_axes: Points, degrees: Points) -> None:
        """Make an object of every ellipse; where two overlap the later owns the pixel."""
        centres = fixed_point(places + self.margin).tolist()
        axes = np.maximum(1, fixed_point(half_axes)).tolist()
        first = len(self.centres) + 1
        self.centres.extend(places)
        for i, (centre, axis, angle) in enumerate(
            zip(centres, axes, degrees.tolist(), strict=True), first
        ):
            cv2.ellipse(self.owner, centre, axis, angle, 0, 360, i, -1, cv2.LINE_8, _SUBPIXEL)

    def polygon(self, outline: Points, density: float) -> None:
        """Draw a filled outline, (K, 2) of x and y."""
        points = fixed_point(outline + self.margin)
        cv2.fillPoly(self.density, [points], density, cv2.LINE_AA, _SUBPIXEL)

    def own_polygon(self, outline: Points, place: Points) -> None:
        """Make an object of the outline with its centre at `place`."""
        self.centres.append(place)
        points = fixed_point(outline + self.margin)
        cv2.fillPoly(self.owner, [points], len(self.centres), cv2.LINE_8, _SUBPIXEL)

    def folded(self) -> Pixels:
        """Return the (period, period) density."""
        return np.asarray(fold(self.density, self.margin), np.uint8)

    def owners(self) -> npt.NDArray[np.int32]:
        """Return the (period, period) owner numbers."""
        return np.asarray(fold(self.owner, self.margin), np.int32)

    def shift(self, wander: Offsets) -> Offsets:
        """Return the (period, period, 2) way to the owner's centre, `wander` without an owner."""
        owner = self.owners()
        way = way_to(np.array([np.zeros(2), *self.centres]), owner)
        return np.where(owner[..., None] > 0, way, wander)


def way_to(centres: Points, owner: npt.NDArray[np.integer[Any]]) -> Offsets:
    """Return the shorter way on a torus from every pixel to the centre of its owner.

    Args:
        centres: (K, 2) centres, x and y.
        owner: (H, W) number of the owner in `centres`; the side is a power of two.

    Returns:
        (H, W, 2) pixels along x and y, cut to `MAX_REACH_PX`.
    """
    period = len(owner)
    position = np.arange(period, dtype=np.int16)
    way = np.round(centres).astype(np.int16)[owner]
    way[..., 0] -= position
    way[..., 1] -= position[:, None]
    half = np.int16(period // 2)
    way = ((way + half) & np.int16(period - 1)) - half
    shift: Offsets = np.clip(way, -MAX_REACH_PX, MAX_REACH_PX).astype(np.int8)
    return shift


def fold(sheet: npt.NDArray[Any], margin: int) -> npt.NDArray[Any]:
    """Fold the margins of a sheet back onto the opposite side, and keep the larger value."""
    for _ in range(2):
        body = sheet[margin:-margin].copy()
        body[:margin] = np.maximum(body[:margin], sheet[-margin:])
        body[-margin:] = np.maximum(body[-margin:], sheet[:margin])
        sheet = body.T
    return sheet


@dataclass(frozen=True, kw_only=True)
class Nuclei:
    """The appearance of the nuclei of a class.

    Attributes:
        diameter_px: mean diameter in pixels (0.5 mpp).
        elongation: ratio of the long axis to the short axis.
        density: haematoxylin density of the membrane.
        spread: standard deviation of the density from nucleus to nucleus.
        pleomorphism: standard deviation of the logarithm of the diameter.
        vesicular: density of the inside relative to the membrane; 1 is equally dark.
        nucleoli: share of nuclei with a nucleolus.
    """

    diameter_px: float
    elongation: float
    density: float
    spread: float = 20.0
    pleomorphism: float = 0.1
    vesicular: float = 0.8
    nucleoli: float = 0.0


def draw_nuclei(
    rng: np.random.Generator,
    sheet: Sheet,
    places: Points,
    look: Nuclei,
    *,
    degrees: Points | None = None,
    own: bool = True,
) -> None:
    """Draw one nucleus per place: membrane, paler inside, nucleolus.

    Args:
        rng: the source of sizes and densities.
        sheet: sheet to draw on.
        places: (K, 2) centres, x and y.
        look: appearance of the nuclei.
        degrees: (K,) direction of the long axes; random if None.
        own: whether each nucleus becomes an object of its own.
    """
    count = len(places)
    radius = look.diameter_px * np.exp(rng.normal(0, look.pleomorphism, count)) / 2
    stretch = np.sqrt(look.elongation * rng.uniform(0.85, 1.15, count))
    half_axes = np.stack([radius * stretch, radius / stretch], -1)
    tilt = rng.uniform(0, 180, count) if degrees is None else degrees + rng.normal(0, 12, count)
    density = np.clip(rng.normal(look.density, look.spread, count), 40, 235)
    spot = np.repeat(radius[:, None] / 4.5, 2, 1)
    aside = places + rng.normal(0, 0.25, (count, 2)) * radius[:, None]
    shown = np.stack(
        [np.ones(count, bool), half_axes[:, 1] > 3.5, rng.random(count) < look.nucleoli], 1
    )
    # One nucleus after the other, not part after part: a nucleus hides what is below it.
    sheet.ellipses(
        np.stack([places, places, aside], 1)[shown],
        np.stack([half_axes, half_axes - 1.5, spot], 1)[shown],
        np.repeat(tilt[:, None], 3, 1)[shown],
        (density[:, None] * [1.1, look.vesicular, 1.3])[shown],
    )
    if own:
        sheet.own_ellipses(places, half_axes + 2, tilt)


def wobbly(rng: np.random.Generator, elongation: float, roughness: float) -> Points:
    """Return a closed outline around the origin with mean radius 1, (72, 2)."""
    turn = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    radius = np.ones_like(turn)
    for waves in range(2, 6):
        radius += rng.normal(0, roughness / waves) * np.cos(waves * turn + rng.uniform(0, 6.3))
    root = np.sqrt(elongation)
    outline = np.stack([radius * root * np.cos(turn), radius / root * np.sin(turn)], -1)
    tilt = rng.uniform(0, np.pi)
    rotation = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    return np.asarray(outline @ rotation)


def evenly_along(rng: np.random.Generator, outline: Points, step: float) -> tuple[Points, Points]:
    """Return places about `step` apart along a closed outline, and outward directions (degrees)."""
    closed = np.vstack([outline, outline[:1]])
    legs = np.hypot(*np.diff(closed, axis=0).T)
    length = np.concatenate([[0.0], np.cumsum(legs)])
    count = max(5, int(length[-1] / step))
    at = ((np.arange(count) + rng.normal(0, 0.12, count)) / count * length[-1]) % length[-1]
    places = np.stack([np.interp(at, length, closed[:, axis]) for axis in (0, 1)], -1)
    outwards = places - outline.mean(0)
    return places, np.rad2deg(np.arctan2(outwards[:, 1], outwards[:, 0]))
