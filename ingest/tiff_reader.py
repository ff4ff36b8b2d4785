"""Slides whose pixels are JPEG tiles in a TIFF: openslide says what they are, and we decode them.

Before a level is trusted, some of its tiles are compared with openslide's pixels; one difference,
and openslide reads the level.
"""

import numpy as np
import numpy.typing as npt

from ingest.errors import SlideError
from ingest.jpeg_tiff import JpegTiff, NotNativeError
from ingest.openslide_reader import OpenSlideReader

PROBES = 3

RgbArray = npt.NDArray[np.uint8]


class TiffReader(OpenSlideReader):
    """An open slide, read natively where that gives openslide's own pixels.

    Args:
        path: a local file.
        mpp: microns per pixel that overrule the file's own.

    Attributes:
        name: "tiff" while any level is read natively.
        fallback: why openslide reads the file, or a level of it; None if it does not.

    Raises:
        SlideError: it is not a slide that openslide reads, or has no usable mpp.
    """

    def __init__(self, path: str, *, mpp: float | None = None) -> None:
        super().__init__(path, mpp=mpp)
        self.fallback: str | None = None
        self._native: JpegTiff | None = None
        self._trusted: dict[int, bool] = {}
        try:
            self._native = JpegTiff(path)
        except NotNativeError as error:
            self.fallback = str(error)
        self._numbers = self._same_levels()

    def _same_levels(self) -> dict[int, int]:
        """Our number of each of openslide's levels that we can read: those of the same size."""
        ours = {
            (found.width_px, found.height_px): number
            for number, found in enumerate(self._native.levels if self._native else [])
        }
        theirs = enumerate(self._slide.level_dimensions)
        return {level: ours[size] for level, size in theirs if size in ours}

    @property
    def name(self) -> str:  # type: ignore[override]
        """Which reader read the pixels."""
        return "tiff" if any(self._trusted.values()) else "openslide"

    def _region(self, x: int, y: int, level: int, size: tuple[int, int]) -> RgbArray:
        scale = self._scale(level)
        # Between two pixels of a level openslide interpolates; what it gives there is its own.
        if self._native is None or not scale or x % scale or y % scale:
            return super()._region(x, y, level, size)
        if level not in self._trusted:
            why = self._distrust(self._native, level, scale)
            self._trusted[level] = why is None
            self.fallback = self.fallback or why
        if not self._trusted[level]:
            return super()._region(x, y, level, size)
        number = self._numbers[level]
        return self._native.region(number, x // scale, y // scale, *size)

    def _scale(self, level: int) -> int:
        """The downsampling of a level that we can read; 0 if it is not whole, or not ours."""
        scale = round(self._downsamples[level])
        whole = abs(self._downsamples[level] - scale) < 1e-9
        return scale if whole and level in self._numbers else 0

    def _distrust(self, native: JpegTiff, level: int, scale: int) -> str | None:
        """Why a level is not to be read natively, after a look at some of its tiles."""
        found = native.levels[self._numbers[level]]
        if not min(found.sizes):
            return f"level {level} has tiles that are not stored"
        # The tiles with most bytes have most to get wrong; the last one has the edges.
        numbers = [*np.argsort(found.sizes)[-PROBES:].tolist(), len(found.sizes) - 1]
        for number in numbers:
            y, x = divmod(number, found.columns)
            x, y = x * found.tile_width_px, y * found.tile_height_px
            size = (found.tile_width_px, found.tile_height_px)
            theirs = super()._region(x * scale, y * scale, level, size)
            try:
                ours = native.region(self._numbers[level], x, y, *size)
            except SlideError as error:
                return str(error)
            if not np.array_equal(ours, theirs):
                worst = int(np.abs(ours.astype(int) - theirs).max())
                return f"tile {number} of level {level} differs from openslide's by {worst}"
        return None

    def close(self) -> None:
        """Close the file."""
        super().close()
        if self._native is not None:
            self._native.close()
            self._native = None
