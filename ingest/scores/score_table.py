"""The one table of scores of tiles: what each measures, its direction, and its function.

A score of kind `slide` is computed while a slide is cut, as the mean over each tile of a map of the
slide, so that tiles which are copied without being decoded have it too; those five are columns of
format 1. A score of kind `pixels` is a function of one tile's stored JPEG, and can be computed for
a lake that is there (`slidelake score`). A new score is an entry here, of kind `pixels`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from ingest.errors import InputError
from ingest.readers.slide_reader import SlideReader
from ingest.scores.focus import slide_focus
from ingest.stain import LEAST_LIGHT, STAIN_UNMIXING
from ingest.tissue.overview_tissue import Tissue

Float32Array = npt.NDArray[np.float32]
RgbArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class SlideView:
    """The inputs of the maps that scores of kind `slide` average.

    Attributes:
        slide: the open slide.
        overview: RGB [H, W, 3] at about 16 mpp.
        scale: side of one pixel of the overview in level-0 pixels.
        tissue: mask of the tissue on the overview [H, W].
    """

    slide: SlideReader
    overview: RgbArray
    scale: float
    tissue: Tissue


@dataclass(frozen=True, kw_only=True)
class Score:
    """One score of tiles.

    Attributes:
        measures: unit and range, as docs/tissue.md states them.
        direction: which values are better or more, as docs/tissue.md states; empty if neither.
        missing: which tiles have no value.
        type: arrow's name of the column's type.
        weighting: pixels that the mean of a map is over: `tissue` (all, in a tile without any),
            `slide` (the tile as far as the slide reaches), or `tile` (beyond the slide counts 0).
        slide_map: the map [H, W] of a score of kind `slide`.
        of_pixels: the score of a tile's RGB pixels [H, W, 3], for kind `pixels`.
        version: version of the function of a score of kind `pixels`; columns of an earlier one are
            computed anew.
    """

    measures: str
    direction: str = ""
    missing: str = "never"
    type: str = "float32"
    weighting: Literal["tissue", "slide", "tile"] = "tile"
    slide_map: Callable[[SlideView], Float32Array] | None = None
    of_pixels: Callable[[RgbArray], float] | None = None
    version: int = 1

    @property
    def kind(self) -> Literal["slide", "pixels"]:
        """Return `slide` or `pixels`: the source that the score is computed from."""
        return "slide" if self.of_pixels is None else "pixels"


def tissue_map(view: SlideView) -> Float32Array:
    """Return 1 on tissue, else 0."""
    return view.tissue.mask.astype(np.float32)


def pen_map(view: SlideView) -> Float32Array:
    """Return 1 where there is ink of a pen, else 0, whether or not it was taken out of the tissue.

    It is averaged over the whole tile, since ink that was taken out is not tissue.
    """
    return view.tissue.pen.astype(np.float32)


def brightness_map(view: SlideView) -> Float32Array:
    """Return the luminance (ITU-R BT.601 weights of R, G, B as stored), 0 black to 1 white."""
    grey = cv2.cvtColor(view.overview, cv2.COLOR_RGB2GRAY)
    return np.asarray(grey, np.float32) / np.float32(255)


def saturation_map(view: SlideView) -> Float32Array:
    """Return the saturation of HSV, 0 grey to 1 a pure colour. H&E has 0.1 to 0.6."""
    saturation = cv2.cvtColor(view.overview, cv2.COLOR_RGB2HSV)[..., 1]
    return np.asarray(saturation, np.float32) / np.float32(255)


def focus_of_slide(view: SlideView) -> Float32Array:
    """Return the focus of a slide; see `focus_map`."""
    return slide_focus(view.slide, view.tissue.mask, view.scale)


def haematoxylin(tile: RgbArray) -> float:
    """Return the mean optical density (base 10) of haematoxylin over a tile [H, W, 3].

    Stain vectors of Ruifrok and Johnston 2001, as in `ingest.stain`. Taking stains apart is linear
    in densities, so it is done once, on their means. Below 0 is colour of another kind.
    """
    densities = -np.log10(np.maximum(np.arange(256) / 255, LEAST_LIGHT))
    sums = [
        np.bincount(tile[..., channel].ravel(), minlength=256) @ densities for channel in range(3)
    ]
    total = float(np.dot(np.array(sums), STAIN_UNMIXING[:, 0]))
    return total / (tile.size // 3)


SCORES = {
    "tissue": Score(
        measures="share of the tile's area, 0 to 1",
        slide_map=tissue_map,
    ),
    "pen": Score(
        measures="share of the tile's area under ink, 0 to 1",
        direction="lower is better",
        weighting="slide",
        slide_map=pen_map,
    ),
    "focus": Score(
        measures="mean square spatial frequency at 2 mpp over its tissue, 0 to 1",
        direction="higher is sharper",
        missing="no tissue in the tile",
        weighting="tissue",
        slide_map=focus_of_slide,
    ),
    "brightness": Score(
        measures="mean luminance (BT.601) over its tissue, 0 black to 1 white; glass 0.95",
        missing="no tissue in the tile",
        weighting="tissue",
        slide_map=brightness_map,
    ),
    "saturation": Score(
        measures="mean saturation (HSV) over its tissue, 0 grey to 1; glass has about 0.01",
        missing="no tissue in the tile",
        weighting="tissue",
        slide_map=saturation_map,
    ),
    "haematoxylin": Score(
        measures="mean optical density (base 10) of haematoxylin over the tile; glass has 0",
        direction="higher is more nuclei",
        missing="not computed, or no pixels in the lake",
        of_pixels=haematoxylin,
    ),
}


def score_named(name: str) -> Score:
    """Return the score of this name.

    Raises:
        InputError: there is no score of that name; the message lists all names.
    """
    if name not in SCORES:
        msg = f"no score of tiles is called '{name}'; there are {', '.join(SCORES)}"
        raise InputError(msg)
    return SCORES[name]


def slide_scores() -> dict[str, Score]:
    """Return the scores that every tile gets while its slide is cut."""
    return {name: score for name, score in SCORES.items() if score.kind == "slide"}
