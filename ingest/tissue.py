"""Where the tissue is, from an overview at about 16 mpp.

A fixed threshold on saturation, not Otsu: Otsu always finds something, so it calls a blank slide
up to 0.8 tissue and halves a slide that is all tissue (measured; docs/decisions.md).
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

BoolArray = npt.NDArray[np.bool_]
RgbArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Tissue:
    """What was found on an overview: the mask [H, W], its share, and a verdict on it."""

    mask: BoolArray
    share: float
    verdict: str


def find_tissue(overview: RgbArray, mpp: float) -> Tissue:
    """Detect tissue on an overview [H, W, 3] of the given mpp.

    The verdict is `ok`, `no tissue` (under 0.05 %), or `suspicious` (over 95 %: perhaps a scan
    without any glass, perhaps a stained background).
    """
    saturation = cv2.cvtColor(overview, cv2.COLOR_RGB2HSV)[..., 1]
    smooth = cv2.medianBlur(saturation, MEDIAN_PX)
    kernel = np.ones((CLOSE_PX, CLOSE_PX), np.uint8)
    found = cv2.morphologyEx((smooth > SATURATION_MIN).astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    mask = _without_specks(found, round(MIN_AREA_UM2 / mpp**2))
    share = float(mask.mean())
    verdict = "no tissue" if share < 0.0005 else "suspicious" if share > 0.95 else "ok"
    return Tissue(mask=mask, share=share, verdict=verdict)


def _without_specks(found: npt.NDArray[np.uint8], least_px: int) -> BoolArray:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(found, connectivity=8)
    large = np.zeros(count, bool)
    large[1:] = stats[1:, cv2.CC_STAT_AREA] >= least_px
    mask: BoolArray = large[labels]
    return mask
