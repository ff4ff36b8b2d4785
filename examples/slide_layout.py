"""Where on a slide the tissue lies, and what kind it is: maps at 1/8 of level 0.

Shares are reached exactly, as quantiles of smooth random fields, so that a slide shows the latent
state of its patient however small it is; only the places are left to chance.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from examples.slide_drawing import Floats, Pixels
from examples.slide_textures import (
    FAT,
    HIGH_GRADE,
    LOW_GRADE,
    LYMPHOID,
    NECROSIS,
    NORMAL_GLAND,
    STROMA,
)

#: Level-0 pixels per cell of a layout map.
STEP_PX = 8
#: Level-0 pixels per cell of the truth masks.
TRUTH_STEP_PX = 32

Mask = npt.NDArray[np.bool_]

_PEN_COLOURS = ((0.20, 0.35, 0.85), (0.12, 0.12, 0.14), (0.20, 0.65, 0.40))


@dataclass(frozen=True, kw_only=True)
class Morphology:
    """The contents of a section.

    Attributes:
        tumour_share: share of the tissue inside tumour.
        high_grade_share: share of the tumour that grows in sheets instead of glands.
        lymphocytes: density from 0 (hardly any) to 1 (dense aggregates and infiltration).
        pen: whether there is a pen mark on the glass.
        blur: whether a region is out of focus.
    """

    tumour_share: float
    high_grade_share: float
    lymphocytes: float
    pen: bool
    blur: bool


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Maps of a slide, each (H, W) at one cell per `STEP_PX`.

    Attributes:
        classes: index into `CLASSES`; defined on glass too, but not to be shown there.
        tissue: share of tissue from 0 (glass) to 1, with a soft edge; the border is at 0.5.
        thickness: factor on both stains.
        lymphocytes: density of single lymphocytes, 0-254.
        pen: opacity of the ink, 0 to 1.
        pen_colour: transmission of the ink in R, G, B.
        blur: blur from 0 (in focus) to 1 (out of focus).
    """

    classes: Pixels
    tissue: Floats
    thickness: Floats
    lymphocytes: Floats
    pen: Floats
    pen_colour: tuple[float, float, float]
    blur: Floats

    def truth(self) -> dict[str, npt.NDArray[Any]]:
        """Return tissue, tissue class, pen and blur at one cell per `TRUTH_STEP_PX`."""
        step = TRUTH_STEP_PX // STEP_PX

        def share(field: Floats) -> Floats:
            height, width = field.shape
            cells = field.reshape(height // step, step, width // step, step)
            return np.asarray(cells.mean((1, 3)), np.float32)

        return {
            "tissue": share(self.tissue) > 0.5,
            "tissue_class": self.classes[step // 2 :: step, step // 2 :: step],
            "pen": share(self.pen) > 0.3,
            "blur": share(self.blur) > 0.5,
            "downsample": np.array(TRUTH_STEP_PX),
        }


class _Fields:
    """Smooth random fields of one shape."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int]) -> None:
        self.rng = rng
        self.shape = shape

    def __call__(self, scale_px: float) -> Floats:
        """Return a field of mean 0 and deviation 1, whose structures are about `scale_px` wide."""
        height, width = self.shape
        knots = [max(2, round(side * STEP_PX / scale_px)) + 3 for side in self.shape]
        coarse = self.rng.standard_normal(knots, np.float32)
        field: Floats = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        scaled: Floats = (field - field.mean()) / field.std()
        return scaled


def _top(field: Floats, inside: Mask, share: float) -> Mask:
    """Return the `share` of the cells inside that have the highest field."""
    if not inside.any():
        return inside
    return inside & (field > np.quantile(field[inside], 1 - share))


def _tissue(rng: np.random.Generator, fields: _Fields) -> Mask:
    """Return one or two pieces of tissue that cover 40-50 % of the slide and keep off its edge."""
    height, width = fields.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    pieces = 2 if width > 1.15 * height else 1
    form = np.full(fields.shape, -9, np.float32)
    for piece in range(pieces):
        centre = (width * (piece + 0.5) / pieces, height * rng.uniform(0.46, 0.54))
        half = (width / pieces * rng.uniform(0.40, 0.46), height * rng.uniform(0.38, 0.44))
        tilt = rng.uniform(-0.35, 0.35)
        across = (np.cos(tilt) * (x - centre[0]) + np.sin(tilt) * (y - centre[1])) / half[0]
        along = (-np.sin(tilt) * (x - centre[0]) + np.cos(tilt) * (y - centre[1])) / half[1]
        form = np.maximum(form, 1 - across**2 - along**2)
    size_px = min(fields.shape) * STEP_PX
    for fraction, weight in ((6, 0.22), (20, 0.09), (60, 0.04)):
        form += weight * fields(size_px / fraction)
    form[fields(size_px / 11) > 2.2] = -9  # holes
    return _top(form, np.ones(fields.shape, bool), rng.uniform(0.41, 0.49))


def _classes(fields: _Fields, tissue: Mask, show: Morphology) -> tuple[Pixels, Floats]:
    """Return the tissue classes, and how near the margin of the tumour a cell is (0 to 1)."""
    growth = fields(700) + 0.3 * fields(180)
    tumour = _top(growth, tissue, show.tumour_share)
    margin = np.exp(-2 * (growth - growth[tumour].min()) ** 2)
    septum = np.abs(fields(300)) < 0.07
    high = _top(fields(450) + 0.35 * fields(150), tumour & ~septum, show.high_grade_share)
    rest = tissue & ~tumour
    normal = _top(fields(420), rest, 0.40)
    fat = _top(fields(380), rest & ~normal, 0.22)
    nests = _top(fields(170) + 1.2 * margin, tissue & ~fat, 0.01 + 0.19 * show.lymphocytes)
    necrotic = _top(fields(260) + 0.6 * growth, high & ~nests, 0.03 + 0.09 * show.high_grade_share)
    classes = np.full(fields.shape, STROMA, np.uint8)
    for mask, number in (
        (normal, NORMAL_GLAND),
        (tumour & ~septum, LOW_GRADE),
        (high, HIGH_GRADE),
        (fat, FAT),
        (nests, LYMPHOID),
        (necrotic, NECROSIS),
    ):
        classes[mask] = number
    return classes, margin


def _pen(rng: np.random.Generator, fields: _Fields) -> Floats:
    """Return two open strokes, as wide as 4 % of the slide, with uneven ink."""
    height, width = fields.shape
    size = min(height, width)
    ink = np.zeros(fields.shape, np.uint8)
    for _ in range(2):
        centre = rng.uniform((0.2 * width, 0.25 * height), (0.8 * width, 0.75 * height))
        turn = np.linspace(0, rng.uniform(3, 5.5), 60) + rng.uniform(0, 6.3)
        radius = size * rng.uniform(0.14, 0.24) * (1 + 0.12 * np.sin(3 * turn))
        stroke = centre + np.stack([1.4 * radius * np.cos(turn), radius * np.sin(turn)], -1)
        points = [np.round(stroke).astype(np.int32)]
        cv2.polylines(
            ink,
            points,
            isClosed=False,
            color=255,
            thickness=max(2, size // 25),
            lineType=cv2.LINE_AA,
        )
    soft: Floats = cv2.GaussianBlur(ink, (0, 0), 0.8).astype(np.float32) / 255
    return np.clip(soft * (0.85 + 0.1 * np.clip(fields(60), -1, 1)), 0, 1)


def _blur(rng: np.random.Generator, tissue: Mask) -> Floats:
    """Return a round region about a fifth of the slide across, on tissue."""
    height, width = tissue.shape
    centres = np.argwhere(cv2.erode(tissue.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0)
    row, column = centres[rng.integers(len(centres))]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    away = np.hypot((x - column) / (0.11 * width), (y - row) / (0.13 * height))
    blur: Floats = np.clip(1.6 - away, 0, 1)
    return blur


def lay_out(rng: np.random.Generator, width_px: int, height_px: int, show: Morphology) -> Layout:
    """Draw the maps of a slide.

    Args:
        rng: the only source of random numbers.
        width_px: width of level 0.
        height_px: height of level 0.
        show: contents that the section is to show.
    """
    per_truth = TRUTH_STEP_PX // STEP_PX
    shape = (-(-height_px // TRUTH_STEP_PX) * per_truth, -(-width_px // TRUTH_STEP_PX) * per_truth)
    fields = _Fields(rng, shape)
    tissue = _tissue(rng, fields)
    classes, margin = _classes(fields, tissue, show)
    infiltration = 0.12 + 0.10 * fields(200) + 0.25 * margin
    density = 254 * np.clip(infiltration, 0.03, 1) * (0.05 + 1.2 * show.lymphocytes)
    density[(classes == FAT) | (classes == NECROSIS)] = 0
    nothing = np.zeros(shape, np.float32)
    return Layout(
        classes=classes,
        tissue=cv2.GaussianBlur(tissue.astype(np.float32), (0, 0), 0.9),
        thickness=1 + 0.10 * fields(800) + 0.05 * fields(150),
        lymphocytes=density,
        pen=_pen(rng, fields) if show.pen else nothing,
        pen_colour=_PEN_COLOURS[rng.integers(len(_PEN_COLOURS))],
        blur=_blur(rng, tissue) if show.blur else nothing,
    )
