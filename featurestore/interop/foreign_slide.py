"""What every foreign format is read into and written from: one slide's tiles, with features.

Coordinates are level-0 pixels of tiles' top-left corners, as in the lake. What a file does not
say and nobody gave is an error that asks for it; nothing is guessed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import LakeError

MPP_TOLERANCE = 0.02

FloatArray = npt.NDArray[np.floating]
Int64Array = npt.NDArray[np.int64]


class InteropError(LakeError):
    """A file or folder of another tool is not as its format says, or does not say enough."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the user gives because the files do not say it.

    Attributes:
        mpp: microns per pixel of the tiles.
        level0_mpp: microns per pixel of the slides' finest level, the same for all.
        tile_px: side of a tile in pixels at `mpp`.
        tile_px_level0: side of a tile in level-0 pixels.
        teachers: NAME, or NAME=FOLDER to name the features under one of several folders.
        known_mpp: level-0 mpp of a slide that the lake knows, by slide_id, or None.
    """

    mpp: float | None = None
    level0_mpp: float | None = None
    tile_px: int | None = None
    tile_px_level0: int | None = None
    teachers: tuple[str, ...] = ()
    known_mpp: Callable[[str], float | None] = field(default=lambda slide_id: None)

    def slide_mpp(self, slide_id: str) -> tuple[float, str] | None:
        """The level-0 mpp of a slide and who said it, or None if nobody did."""
        if self.level0_mpp is not None:
            return self.level0_mpp, "given"
        known = self.known_mpp(slide_id)
        return None if known is None else (known, "lake")


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files of one slide in one grid, found by their names; nothing is opened yet.

    Attributes:
        slide_id: the slide's name without ending.
        coords: the file that holds coordinates apart from the features, if there is one.
        features: the file of each teacher's features.
        tissue: GeoJSON of the slide's tissue.
        meta: a file beside the coordinates that describes them.
    """

    slide_id: str
    coords: Path | None = None
    features: Mapping[str, Path] = field(default_factory=dict)
    tissue: Path | None = None
    meta: Path | None = None

    @property
    def path(self) -> Path:
        """The file that stands for this source in messages and in the lake."""
        found = self.coords or self.meta or next(iter(self.features.values()), None)
        if found is None:
            msg = f"slide '{self.slide_id}' has no file"
            raise InteropError(msg)
        return found


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A file that was not taken.

    Attributes:
        path: which file.
        slide_id: whose it is, as far as its name says.
        reason: why it was not taken, and what to do.
        failed: False if it is whole, but nothing that a lake holds (a slide's one vector, say).
    """

    path: str
    slide_id: str
    reason: str
    failed: bool = True


@dataclass(frozen=True, kw_only=True)
class SlideTiles:
    """Where the tiles of one slide are.

    Attributes:
        slide_id: the slide's name without ending.
        x: level-0 pixels of the tiles' left edges [N].
        y: level-0 pixels of the tiles' top edges [N].
        tile_px: side of a tile in pixels at `mpp`, as an encoder saw it.
        tile_px_level0: side of a tile in level-0 pixels.
        mpp: microns per pixel of the tiles, as the files or the user name it.
        mpp_source: who said it: "file", "given", or a rule, such as "10 / magnification".
        level0_mpp: microns per pixel of level 0, or None if nobody said it.
        level0_mpp_source: who said that.
        width_px: width of level 0 in pixels, if known.
        height_px: height of level 0 in pixels, if known.
        tissue_geojson: polygons of the tissue in level-0 pixels, as a GeoJSON text.
        source: the file that this was read from.
        attrs: what else the file says.
    """

    slide_id: str
    x: Int64Array
    y: Int64Array
    tile_px: int
    tile_px_level0: int
    mpp: float
    mpp_source: str
    level0_mpp: float | None = None
    level0_mpp_source: str | None = None
    width_px: int | None = None
    height_px: int | None = None
    tissue_geojson: str | None = None
    source: str = ""
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def xy(self) -> Int64Array:
        """Coordinates [N, 2]."""
        return np.stack([self.x, self.y], axis=1).astype(np.int64)

    @property
    def effective_mpp(self) -> float | None:
        """Microns per pixel that the tiles have by their size on the slide, if that is known."""
        if self.level0_mpp is None:
            return None
        return self.level0_mpp * self.tile_px_level0 / self.tile_px


@dataclass(frozen=True, kw_only=True)
class SlideFeatures(SlideTiles):
    """The tiles of one slide with the features of one or several teachers.

    Attributes:
        features: teacher -> [N, D], in the order of the tiles.
    """

    features: Mapping[str, FloatArray] = field(default_factory=dict)
