"""The protocol of slide readers: what the pipeline needs of an open slide, whatever its format.

`LevelReader` implements it for pyramids, so that a format only returns its levels' sizes and
pixels. `open_slide` picks a reader from `reader_table.READERS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from ingest.grid import Grid

RgbArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """The settings that a slide is read with.

    Attributes:
        mpp: microns per pixel that overrule the file's own.
        allow_anisotropic: take the mean where mpps across and down differ by more than 2 %.
        icc: convert colours to sRGB by the slide's ICC profile, where it has one.
    """

    mpp: float | None = None
    allow_anisotropic: bool = False
    icc: bool = False


def read_options(row: Mapping[str, Any]) -> ReadOptions:
    """Return the settings that a slide is read with, from its row."""
    return ReadOptions(
        mpp=row.get("mpp"),
        allow_anisotropic=bool(row.get("allow_anisotropic")),
        icc=bool(row.get("icc")),
    )


class SlideReader(Protocol):
    """One open slide. It can't be pickled: workers open their own.

    Attributes:
        path: the local file.
        name: name of the reader that read the pixels; the column `reader` of `slides`.
        fallback: why openslide reads the slide in place of the native reader; None if it does not.
        vendor: the scanner's maker as openslide names it; None where it is not known.
        objective: magnification of the objective, where the file states it.
        icc_profile: ICC profile of the slide's colours; None where there is none.
        notes: oddities of the slide, each in one line.
        size_px: width and height of level 0.
        mpp: microns per pixel of level 0, the mean of `mpp_x` and `mpp_y`.
        mpp_source: `given`, `file` or `objective`.
        turns_upright: whether pixels are turned as an orientation tag states.
    """

    path: str
    fallback: str | None
    vendor: str | None
    objective: float | None
    icc_profile: bytes | None
    notes: list[str]
    size_px: tuple[int, int]
    mpp: float
    mpp_source: str
    mpp_x: float
    mpp_y: float
    turns_upright: bool

    @property
    def name(self) -> str:
        """Return the name of the reader that read the pixels."""
        ...

    @property
    def levels(self) -> int:
        """Return the number of stored levels."""
        ...

    @property
    def converts_colours(self) -> bool:
        """Whether pixels are returned in other colours than they are stored in."""
        ...

    def is_fit(self, level: int) -> bool:
        """Return whether a level shows the picture of level 0; an unfit level is noted."""
        ...

    def region(
        self, level: int, x: int, y: int, width: int, height: int, *, shrink: int = 1
    ) -> RgbArray:
        """Return pixels [height, width, 3] of a level, reduced to 1 / shrink; white outside it.

        Raises:
            SlideError: the pixels can't be read.
        """
        ...

    def tile(self, grid: Grid, grid_y: int, grid_x: int) -> RgbArray:
        """Return the pixels of one tile [tile_px, tile_px, 3]; white outside the slide.

        Raises:
            SlideError: the pixels can't be read.
        """
        ...

    def overview(self, mpp: float) -> tuple[RgbArray, float]:
        """Return the whole slide at about `mpp` [H, W, 3], and a pixel's side at level 0."""
        ...

    def piece(self, scale: float, x: int, y: int, width: int, height: int, factor: int) -> RgbArray:
        """Return pixels of `scale` level-0 pixels each for a part of an overview.

        `x`, `y`, `width` and `height` are in pixels of the overview, each of which is `factor`
        pixels of the piece [height * factor, width * factor, 3] wide.
        """
        ...

    def unfit_levels(self, downsample: float) -> list[str]:
        """Return the notes on levels of at least this scale that do not show level 0's picture."""
        ...

    def stored_level(self, grid: Grid) -> int | None:
        """Return the level whose stored tiles are the tiles of a grid; None if there is none."""
        ...

    def stored_jpeg(self, level: int, grid_y: int, grid_x: int) -> bytes | None:
        """Return a stored tile of a `stored_level`; None if the tile reaches beyond the slide."""
        ...

    def stored_tile_px(self, mpp: float) -> int | None:
        """Return the side of the square JPEG tiles stored at an mpp; None if there are none."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...

    def __enter__(self) -> Self:
        """Return the reader; it is closed when the block ends."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Close the file."""
        ...
