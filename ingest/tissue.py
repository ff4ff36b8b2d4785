"""Where the tissue is, from an overview at about 16 mpp.

A fixed threshold on saturation, not Otsu: Otsu always finds something, so it calls a blank slide
up to 0.8 tissue and halves a slide that is all tissue (docs/tissue.md has the numbers). Ink is told
by colour and by the width of a stroke; whatever is doubtful stays tissue, since a tile that is in
the lake can be dropped by a query and a tile that is not there can't be brought back.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

OVERVIEW_MPP = 16.0
SATURATION_MIN = 8
MEDIAN_PX = 7
CLOSE_PX = 4
MIN_AREA_UM2 = 4096.0
NO_LIGHT = 12

# Haematoxylin, eosin, DAB and PAS absorb at most 1.0 times as much red as green, haematoxylin on
# a real IHC section at 16 mpp up to 1.2; blue and green markers 1.3 to 4 times.
COLD_RATIO = 1.25
COLD_DENSITY_MIN = 0.12
RIM_RATIO = 1.08
RIM_DENSITY_MIN = 0.06
BLACK_MAX = 110
BLACK_PURITY = 0.7
# A marker's line is a third of a millimetre wide or more; the inked margin of a specimen, which
# has the same colours and lies on tissue, is thinner.
STROKE_UM = 144.0
STROKE_AREA_UM2 = 100_000.0

NO_TISSUE = 0.0005
ALL_TISSUE = 0.95
MUCH_PEN = 0.25
MOSTLY_PEN = 0.5

BoolArray = npt.NDArray[np.bool_]
RgbArray = npt.NDArray[np.uint8]
MaskBytes = npt.NDArray[np.uint8]

# Optical density over glass of 244, natural logarithm; what is brighter than glass is glass.
_DENSITY = np.maximum(-np.log(np.maximum(np.arange(256), 1) / 244), 0).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Tissue:
    """What was found on an overview [H, W, 3].

    Attributes:
        mask: [H, W], what counts as tissue.
        pen: [H, W], what has the colour and the width of a pen's stroke, over tissue or beside it;
            filled whether or not it was taken out of the mask.
        share: of the overview that is tissue, 0 to 1.
        pen_share: of the overview that is pen, 0 to 1.
        verdict: `no tissue` (under 0.05 % of the slide), `mostly pen` (over half of what was found
            looks like pen; then none of it is taken out), `suspicious` (over 95 % of the slide, or
            over a quarter of what was found looks like pen), else `ok`. Pen counts in it where the
            veto is on.
        why: the numbers behind the verdict, in one line.
    """

    mask: BoolArray
    pen: BoolArray
    share: float
    pen_share: float
    verdict: str
    why: str


def find_tissue(overview: RgbArray, mpp: float, *, pen_veto: bool = True) -> Tissue:
    """Detect tissue on an overview [H, W, 3].

    Black borders, grey shadows, black ink and specks below 64 x 64 um are not tissue. Blue and
    green ink is found but is tissue again where `pen_veto` is off, or where it is most of what was
    found. Red ink has the colours of eosin and blood and stays tissue.

    Args:
        overview: RGB of the whole slide.
        mpp: microns per pixel of the overview, 8 to 32.
        pen_veto: take pen out of the mask. To be off where a stain is blue or green itself:
            trichrome, Alcian blue, Giemsa, light or methyl green (docs/tissue.md).
    """
    speck_px = round(MIN_AREA_UM2 / mpp**2)
    found, pen = _without_specks(_stained(overview), speck_px), find_pen(overview, mpp)
    inked = float((found & pen).sum() / max(1, found.sum()))
    mask, taken = found, "left in"
    if pen_veto and 0 < inked <= MOSTLY_PEN:
        mask, taken = _without_specks((found & ~pen).astype(np.uint8), speck_px), "taken out"
    share, pen_share = float(mask.mean()), float(pen.mean())
    why = f"tissue on {share:.2%} of the slide"
    if pen_share:
        why += f", pen on {pen_share:.2%}; {inked:.0%} of what was found looks like pen, {taken}"
    verdict = _verdict(share, inked if pen_veto else 0.0)
    return Tissue(mask=mask, pen=pen, share=share, pen_share=pen_share, verdict=verdict, why=why)


def _verdict(share: float, inked: float) -> str:
    if share < NO_TISSUE:
        return "no tissue"
    if inked > MOSTLY_PEN:
        return "mostly pen"
    return "suspicious" if share > ALL_TISSUE or inked > MUCH_PEN else "ok"


def _stained(overview: RgbArray) -> MaskBytes:
    """What has colour, and is not so dark that colour means nothing."""
    hsv = cv2.cvtColor(overview, cv2.COLOR_RGB2HSV)
    # Saturation is relative: noise of 1 in a black border would be full saturation.
    saturation = np.where(hsv[..., 2] > NO_LIGHT, hsv[..., 1], 0).astype(np.uint8)
    smooth = cv2.medianBlur(saturation, MEDIAN_PX)
    kernel = np.ones((CLOSE_PX, CLOSE_PX), np.uint8)
    closed: MaskBytes = cv2.morphologyEx(
        (smooth > SATURATION_MIN).astype(np.uint8), cv2.MORPH_CLOSE, kernel
    )
    return closed


def find_pen(overview: RgbArray, mpp: float) -> BoolArray:
    """Where blue, green or black ink lies in strokes of some width, [H, W].

    Args:
        overview: RGB [H, W, 3].
        mpp: microns per pixel.
    """
    sure, rim = _ink(overview)
    stroke = max(3, round(STROKE_UM / mpp))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (stroke, stroke))
    wide = cv2.morphologyEx(cv2.medianBlur(sure, 5), cv2.MORPH_OPEN, kernel)
    core = _without_specks(wide, round(STROKE_AREA_UM2 / mpp**2)).astype(np.uint8)
    if not core.any():
        return core.astype(bool)
    # Out to the edge of the stroke, where ink is thin or half of a pixel is glass.
    pen: BoolArray = (core | (cv2.dilate(core, kernel, iterations=2) & rim)).astype(bool)
    return pen


def _ink(overview: RgbArray) -> tuple[MaskBytes, MaskBytes]:
    """What has the colour of ink for sure, and what may be its rim."""
    red, green, blue = (_DENSITY.take(band) for band in cv2.split(cv2.blur(overview, (3, 3))))
    most, least = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    grey = least > BLACK_PURITY * most
    light = least < _DENSITY[NO_LIGHT]
    black = grey & (least > _DENSITY[BLACK_MAX])
    cold = (red > COLD_RATIO * green) & (red > COLD_DENSITY_MIN)
    thin = ((red > RIM_RATIO * green) | grey) & (red > RIM_DENSITY_MIN)
    sure: MaskBytes = ((cold | black) & light).astype(np.uint8)
    rim: MaskBytes = (thin & light).astype(np.uint8)
    return sure, rim


def _without_specks(found: MaskBytes, least_px: int) -> BoolArray:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(found, connectivity=8)
    large = np.zeros(count, bool)
    large[1:] = stats[1:, cv2.CC_STAT_AREA] >= least_px
    mask: BoolArray = large[labels]
    return mask
