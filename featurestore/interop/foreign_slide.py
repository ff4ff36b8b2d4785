"""One slide's tiles with features: the form between every foreign format and a lake.

Coordinates are level-0 pixels of tiles' top-left corners, as in the lake. What neither
a file nor the user names is an error that names the option for it; nothing is guessed.
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
    """Raised for a file of another tool that breaks its format, or lacks something needed.

    Examples:
        >>> issubclass(sl.InteropError, sl.LakeError)
        True
    """


@dataclass(frozen=True, kw_only=True)
class ImportFacts:
    """Facts that the user adds because the files lack them.

    Attributes:
        mpp: microns per pixel of the tiles.
        level0_mpp: microns per pixel of the slides' finest level, the same for all.
        tile_px: side of a tile in pixels at `mpp`.
        tile_px_level0: side of a tile in level-0 pixels.
        teachers: names of teachers: NAME, or NAME=FOLDER for the features under one folder.
        known_mpp: looks up the level-0 mpp of a slide in the lake by slide_id; None if unknown.
    """

    mpp: float | None = None
    level0_mpp: float | None = None
    tile_px: int | None = None
    tile_px_level0: int | None = None
    teachers: tuple[str, ...] = ()
    known_mpp: Callable[[str], float | None] = field(default=lambda slide_id: None)

    def slide_mpp(self, slide_id: str) -> tuple[float, str] | None:
        """Return the level-0 mpp of a slide and its origin, or None if it is unknown."""
        if self.level0_mpp is not None:
            return self.level0_mpp, "given"
        lake_mpp = self.known_mpp(slide_id)
        return None if lake_mpp is None else (lake_mpp, "lake")


@dataclass(frozen=True, kw_only=True)
class SlideFiles:
    """The files of one slide in one grid, identified by file name; none is open yet.

    Attributes:
        slide_id: the slide's name without ending.
        coords: the separate file of coordinates, or None.
        features: the file of each teacher's features.
        tissue: GeoJSON of the slide's tissue.
        meta: a file beside the coordinates that describes them.
    """

    slide_id: str
    coords: Path | None = None
    features: Mapping[str, Path] = field(default_factory=dict)
    tissue: Path | None = None
    meta: Path | None = None

    def shown(self, path: Path) -> str:
        """Return the path of a file of this source for messages."""
        return str(path)

    @property
    def path(self) -> Path:
        """Return the file that represents this source in messages and in the lake."""
        file = self.coords or self.meta or next(iter(self.features.values()), None)
        if file is None:
            msg = f"slide '{self.slide_id}' has no file"
            raise InteropError(msg)
        return file


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A file that was not imported.

    Attributes:
        path: path of the file.
        slide_id: the slide of the file, by its name.
        reason: the reason, and the remedy.
        failed: false for an undamaged file of a kind that no lake holds (such as slide embeddings).
    """

    path: str
    slide_id: str
    reason: str
    failed: bool = True


@dataclass(frozen=True, kw_only=True)
class GridFacts:
    """Facts of a slide's tiles beyond their places, which files of a lake's own format hold.

    Attributes:
        step_px: level-0 pixels between neighbouring cells of the grid.
        cells_y: row of each tile's cell [N].
        cells_x: column of each tile's cell [N].
        effective_mpp: microns per pixel that the tiles really have; None if that is not known.
        width: cells in a row of the whole grid, background included.
        height: rows of the whole grid.
        columns: further columns of the tiles: their scores, and their codec.
    """

    step_px: int
    cells_y: Int64Array
    cells_x: Int64Array
    effective_mpp: float | None
    width: int
    height: int
    columns: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class SlideTiles:
    """The places of the tiles of one slide, their size and their mpp.

    Attributes:
        slide_id: the slide's name without ending.
        x: level-0 pixels of the tiles' left edges [N].
        y: level-0 pixels of the tiles' top edges [N].
        tile_px: side of a tile in pixels at `mpp`, as an encoder gets it.
        tile_px_level0: side of a tile in level-0 pixels.
        mpp: microns per pixel of the tiles, as the files or the user name it.
        mpp_source: origin of `mpp`: "file", "given", or a rule, such as "10 / magnification".
        level0_mpp: microns per pixel of level 0, or None if it is unknown.
        level0_mpp_source: origin of `level0_mpp`.
        width_px: width of level 0 in pixels, if known.
        height_px: height of level 0 in pixels, if known.
        tissue_geojson: polygons of the tissue in level-0 pixels, as a GeoJSON text.
        source: the file that this was read from.
        attrs: further attributes of the file.
        grid: the lake's own grid, if the files hold it.
        facts: what the exported lake says of the slide, by columns of `slides`.
        mark: checksum that stands for the source; None where the source is a file of its own.
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
    grid: GridFacts | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    mark: str | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def xy(self) -> Int64Array:
        """Return the coordinates [N, 2]."""
        return np.stack([self.x, self.y], axis=1).astype(np.int64)

    @property
    def effective_mpp(self) -> float | None:
        """Return the microns per pixel that follow from the tiles' size on the slide, or None."""
        if self.grid is not None:
            return self.grid.effective_mpp
        if self.level0_mpp is None:
            return None
        return self.level0_mpp * self.tile_px_level0 / self.tile_px


@dataclass(frozen=True, kw_only=True)
class SlideFeatures(SlideTiles):
    """The tiles of one slide with the features of one or several teachers.

    Attributes:
        features: features [N, D] by teacher, in the order of the tiles.
    """

    features: Mapping[str, FloatArray] = field(default_factory=dict)
