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
COLD_DENSITY_MIN = 0.25
RIM_RATIO = 1.08
RIM_DENSITY_MIN = 0.06
BLACK_MAX = 110
BLACK_PURITY = 0.7
# A marker's line is a third of a millimetre wide or more; the inked margin of a specimen, which
# has the same colours and lies on tissue, is thinner.
STROKE_UM = 144.0
STROKE_AREA_UM2 = 100_000.0

# What is as grey as this in a piece up to 0.1 mm2 is dirt; haematoxylin with DAB has 0.72.
DIRT_PURITY = 0.8
DIRT_DENSITY_MIN = 0.2
DIRT_SHARE = 0.4
DIRT_AREA_UM2 = 100_000.0
SLIVER_PX = 5

# Glass is looked for along the border of the slide.
FRAME_SHARE = 0.02
GLASS_MIN = 180
GLASS_SPREAD = 4
GLASS_SHARE = 0.3
TINT_RANGE = (4.0, 26.0)
PINK_MIN = 3

# Optical density between the strongest and the weakest absorbed colour: a pale cell has 0.08 and
# more, an orange one with a blue nucleus 0.13, noise of 4 grey levels over 3 x 3 pixels 0.02.
CELL_COLOUR = 0.05
MANY_SPECKS = 20

NO_TISSUE = 0.0005
ALL_TISSUE = 0.95
MUCH_PEN = 0.25
MOSTLY_PEN = 0.5

BoolArray = npt.NDArray[np.bool_]
RgbArray = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
MaskBytes = npt.NDArray[np.uint8]
Bands = tuple[Float32Array, Float32Array, Float32Array]

# Optical density over glass of 244, natural logarithm; what is brighter than glass is glass.
_DENSITY = np.maximum(-np.log(np.maximum(np.arange(256), 1) / 244), 0).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Tissue:
    """The tissue and the pen on an overview [H, W, 3].

    Attributes:
        mask: [H, W], pixels that count as tissue.
        pen: [H, W], pixels with the colour and the width of a pen's stroke, on tissue or beside it;
            filled whether or not it was taken out of the mask.
        share: share of the overview that is tissue, 0 to 1.
        pen_share: share of the overview that is pen, 0 to 1.
        verdict: `no tissue` (under 0.05 % of the slide), `mostly pen` (over half of what was found
            looks like pen; then none of it is taken out), `suspicious` (over 95 % of the slide,
            over a quarter of what was found looks like pen, or specks of colour off it are more
            than all of it), else `ok`. Pen counts in it where the
            veto is on.
        why: the numbers behind the verdict, in one line.
        least_px: pixels of the overview that have to be tissue for a tile to be kept; None: the
            lake's least share decides.
    """

    mask: BoolArray
    pen: BoolArray
    share: float
    pen_share: float
    verdict: str
    why: str
    least_px: float | None = None


def find_tissue(overview: RgbArray, mpp: float, *, pen_veto: bool = True) -> Tissue:
    """Detect tissue on an overview [H, W, 3].

    Black borders, grey shadows, black ink, grey dirt up to 0.1 mm2 and specks below 64 x 64 um are
    not tissue. Blue and
    green ink is found but is tissue again where `pen_veto` is off, or where it is most of what was
    found. Red ink has the colours of eosin and blood and stays tissue. Glass of a yellow, green or
    blue tint is taken as white; pink glass is not, since pale tissue is pink.

    Args:
        overview: RGB of the whole slide.
        mpp: microns per pixel of the overview, 8 to 32.
        pen_veto: whether pen is taken out of the mask. Turn it off where a stain is blue or green:
            trichrome, Alcian blue, Giemsa, light or methyl green (docs/tissue.md).
    """
    glass = tinted_glass(overview)
    if glass is not None:
        overview = white_balanced(overview, glass)
    bands = _densities(overview)
    stained, pen = _stained(overview, bands, mpp), _pen(bands, mpp)
    inked = float((stained & pen).sum() / max(1, stained.sum()))
    mask, taken = stained, "left in"
    if pen_veto and 0 < inked <= MOSTLY_PEN:
        mask, taken = _without_pen(stained, pen, mpp), "taken out"
    share, pen_share = float(mask.mean()), float(pen.mean())
    why = f"tissue on {share:.2%} of the slide"
    if pen_share:
        why += f", pen on {pen_share:.2%}; {inked:.0%} of what was found looks like pen, {taken}"
    if specks := _specks(bands, stained):
        why += f"; {specks} specks of colour were left out: isolated cells need --tissue cells"
    if glass is not None:
        why += f"; glass is tinted (R, G, B {', '.join(f'{c:.0f}' for c in glass)}), taken as white"
    verdict = _verdict(share, inked if pen_veto else 0.0, specks=specks)
    return Tissue(mask=mask, pen=pen, share=share, pen_share=pen_share, verdict=verdict, why=why)


def _verdict(share: float, inked: float, *, specks: int) -> str:
    if share < NO_TISSUE:
        return "no tissue"
    if inked > MOSTLY_PEN:
        return "mostly pen"
    return "suspicious" if share > ALL_TISSUE or inked > MUCH_PEN or specks else "ok"


def verdict_of(share: float, least_px: float | None = None) -> str:
    """Return the verdict on a mask from its share of the slide alone.

    Where a single cell is enough (`least_px`), any share is tissue.
    """
    if share < NO_TISSUE and (least_px is None or not share):
        return "no tissue"
    return "suspicious" if share > ALL_TISSUE else "ok"


def tinted_glass(overview: RgbArray) -> Float64Array | None:
    """Return R, G, B of tinted glass; None if it has no tint, or the border shows no glass.

    The colour of glass is that of most bright pixels of the border, if they are many.
    """
    height, width = overview.shape[:2]
    rows, columns = (max(2, round(FRAME_SHARE * n)) for n in (height, width))
    sides = (overview[:rows], overview[-rows:], overview[:, :columns], overview[:, -columns:])
    frame = np.concatenate([side.reshape(-1, 3) for side in sides])
    bright = frame[frame.min(axis=1) > GLASS_MIN]
    if len(bright) < GLASS_SHARE * len(frame):
        return None
    glass: Float64Array = np.median(bright, axis=0)
    agree = (np.abs(bright - glass) <= GLASS_SPREAD).all(axis=1).sum()
    tint = 255 * (glass.max() - glass.min()) / glass.max()
    pink = min(glass[0], glass[2]) - glass[1] >= PINK_MIN
    if agree < GLASS_SHARE * len(frame) or not TINT_RANGE[0] < tint < TINT_RANGE[1] or pink:
        return None
    return glass


def white_balanced(overview: RgbArray, glass: Float64Array) -> RgbArray:
    """Return an overview in the colours that it would have through neutral glass."""
    bands = np.arange(256)[:, None] * (glass.max() / glass)
    table = np.clip(bands.round(), 0, 255).astype(np.uint8)
    balanced: RgbArray = cv2.LUT(overview, table.reshape(256, 1, 3))
    return balanced


def saturated(overview: RgbArray, *, otsu: bool = False) -> tuple[BoolArray, int]:
    """Return pixels with colour that are not too dark for it, and the threshold.

    Args:
        overview: RGB overview [H, W, 3].
        otsu: take Otsu's threshold on the smoothed saturation in place of the fixed threshold. It
            always finds some tissue.
    """
    _, saturation, brightness = cv2.split(cv2.cvtColor(overview, cv2.COLOR_RGB2HSV))
    threshold = SATURATION_MIN
    if otsu:
        smoothed = cv2.medianBlur(saturation, MEDIAN_PX)
        threshold = int(cv2.threshold(smoothed, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[0])
    # Saturation is relative: noise of 1 in a black border would be full saturation.
    coloured = ((saturation > threshold) & (brightness > NO_LIGHT)).astype(np.uint8)
    # The median is above the threshold where most pixels are; counting them is 20 times as fast.
    size = (MEDIAN_PX, MEDIAN_PX)
    count = cv2.boxFilter(coloured, -1, size, normalize=False, borderType=cv2.BORDER_REPLICATE)
    smooth = (count > MEDIAN_PX**2 // 2).astype(np.uint8)
    kernel = np.ones((CLOSE_PX, CLOSE_PX), np.uint8)
    closed = cv2.morphologyEx(smooth, cv2.MORPH_CLOSE, kernel)
    return np.asarray(closed > 0), threshold


def without_specks(mask: BoolArray, mpp: float) -> BoolArray:
    """Return a mask without its pieces below 64 x 64 um."""
    return _large_pieces(mask.astype(np.uint8), round(MIN_AREA_UM2 / mpp**2))


def colour_of(pixels: RgbArray) -> Float32Array:
    """Return the optical density [H, W] by which a pixel absorbs one colour more than another.

    It is smoothed over 3 pixels; 0 where a pixel is as grey as dirt, or too dark to have a colour.
    """
    return _colour(_densities(pixels))


def _colour(bands: Bands) -> Float32Array:
    most, least = _extremes(bands)
    grey = (least > DIRT_PURITY * most) & (least > DIRT_DENSITY_MIN)
    dark = least > _DENSITY[NO_LIGHT]
    colour: Float32Array = np.where(grey | dark, np.float32(0), most - least)
    return colour


def _specks(bands: Bands, tissue: BoolArray) -> int:
    """Return the number of coloured specks off the tissue, if their area is larger; else 0.

    Isolated cells look like such specks on an overview.
    """
    near = cv2.dilate(tissue.astype(np.uint8), np.ones((MEDIAN_PX, MEDIAN_PX), np.uint8)) > 0
    specks = ((_colour(bands) > CELL_COLOUR) & ~near).astype(np.uint8)
    count = int(cv2.connectedComponents(specks, connectivity=8)[0]) - 1
    return count if count >= MANY_SPECKS and specks.sum() > tissue.sum() else 0


def _densities(overview: RgbArray) -> Bands:
    """Return the optical density of R, G, B, each [H, W], smoothed over 3 pixels."""
    red, green, blue = cv2.split(cv2.blur(overview, (3, 3)))
    return cv2.LUT(red, _DENSITY), cv2.LUT(green, _DENSITY), cv2.LUT(blue, _DENSITY)


def _stained(overview: RgbArray, bands: Bands, mpp: float) -> BoolArray:
    """Return the stained pixels, in pieces of some size, without small grey pieces."""
    most, least = _extremes(bands)
    grey = (least > DIRT_PURITY * most) & (least > DIRT_DENSITY_MIN)
    count, labels, area = _pieces(saturated(overview)[0].astype(np.uint8))
    keep = area >= round(MIN_AREA_UM2 / mpp**2)
    dirt = np.bincount(labels[grey], minlength=count) > DIRT_SHARE * area
    keep &= ~(dirt & (area <= DIRT_AREA_UM2 / mpp**2))
    keep[0] = False
    stained: BoolArray = keep[labels]
    return stained


def _without_pen(tissue: BoolArray, pen: BoolArray, mpp: float) -> BoolArray:
    left = (tissue & ~pen).astype(np.uint8)
    kernel = np.ones((SLIVER_PX, SLIVER_PX), np.uint8)
    # What is left of the rim of a stroke are slivers along it.
    near = cv2.dilate(pen.astype(np.uint8), kernel, iterations=2)
    rim = near & ~cv2.morphologyEx(left, cv2.MORPH_OPEN, kernel)
    return _large_pieces(left & ~rim, round(MIN_AREA_UM2 / mpp**2))


def _pen(bands: Bands, mpp: float) -> BoolArray:
    """Return the pixels [H, W] of blue, green or black ink in strokes of some width."""
    sure, rim = _ink(bands)
    stroke = max(3, round(STROKE_UM / mpp))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (stroke, stroke))
    wide = cv2.morphologyEx(cv2.medianBlur(sure, 5), cv2.MORPH_OPEN, kernel)
    core = _large_pieces(wide, round(STROKE_AREA_UM2 / mpp**2)).astype(np.uint8)
    if not core.any():
        return core.astype(bool)
    # Out to the edge of the stroke, where ink is thin or half of a pixel is glass.
    pen: BoolArray = (core | (cv2.dilate(core, kernel, iterations=2) & rim)).astype(bool)
    return pen


def _ink(bands: Bands) -> tuple[MaskBytes, MaskBytes]:
    """Return pixels that certainly have the colour of ink, and pixels that may be its rim."""
    red, green, _ = bands
    most, least = _extremes(bands)
    grey = least > BLACK_PURITY * most
    light = least < _DENSITY[NO_LIGHT]
    black = grey & (least > _DENSITY[BLACK_MAX])
    cold = (red > COLD_RATIO * green) & (red > COLD_DENSITY_MIN)
    thin = ((red > RIM_RATIO * green) | grey) & (red > RIM_DENSITY_MIN)
    sure: MaskBytes = ((cold | black) & light).astype(np.uint8)
    rim: MaskBytes = (thin & light).astype(np.uint8)
    return sure, rim


def _extremes(bands: Bands) -> tuple[Float32Array, Float32Array]:
    red, green, blue = bands
    return cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)


def _large_pieces(mask_bytes: MaskBytes, least_px: int) -> BoolArray:
    _, labels, area = _pieces(mask_bytes)
    keep = area >= least_px
    keep[0] = False
    mask: BoolArray = keep[labels]
    return mask


def _pieces(mask_bytes: MaskBytes) -> tuple[int, npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return the number of connected pieces, each pixel's piece (0 is none), and their areas."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask_bytes, connectivity=8)
    return count, labels, stats[:, cv2.CC_STAT_AREA]
