"""Slides of JPEG tiles in a TIFF: openslide describes them, and they are decoded here.

Before a level is trusted, some of its tiles are compared with openslide's pixels; one difference,
and openslide reads the level.
"""

from functools import cached_property

import numpy as np

from ingest.errors import SlideError
from ingest.grid import MPP_TOLERANCE, Grid
from ingest.readers.level_check import Place, level_scale
from ingest.readers.openslide_reader import OpenSlideReader
from ingest.readers.slide_file import SlideFile
from ingest.readers.slide_reader import ReadOptions, RgbArray, SlideReader
from ingest.readers.tiff.jpeg_tiff import SHRINKS, JpegTiff, NotNativeError, compared_tiles
from ingest.readers.tiff.tile_grids import TileGrid, tile_grids, tile_places

NEAR = 6.0  # grey levels; wrong colours are 48


class TiffReader(OpenSlideReader):
    """An open slide, read natively where that returns openslide's own pixels.

    Args:
        path: a local file.
        mpp: microns per pixel that overrule the file's own.
        options: the settings to read it with, `mpp` included; in place of `mpp`.

    Attributes:
        name: "tiff" while any level is read natively.
        fallback: why openslide reads the file, or a level of it; None if it does not.

    Raises:
        SlideError: the file is no slide that openslide reads, or has no usable mpp.
    """

    def __init__(
        self, path: str, *, mpp: float | None = None, options: ReadOptions | None = None
    ) -> None:
        super().__init__(path, mpp=mpp, options=options)
        self._native: JpegTiff | None = None
        self._trusted: dict[int, bool] = {}
        try:
            self._native = JpegTiff(path)
        except NotNativeError as error:
            self.fallback = str(error)
        self._numbers = self._same_levels()
        if self._native and len(self._sizes) == 1:
            self._add_levels(self._native)

    def _same_levels(self) -> dict[int, int]:
        """Return the native number of each of openslide's levels that has the same size."""
        ours = {
            (native_level.width_px, native_level.height_px): number
            for number, native_level in enumerate(self._native.levels if self._native else [])
        }
        openslide_levels = enumerate(self._sizes)
        # Between two pixels of a level openslide interpolates; what it gives there is its own.
        return {
            level: ours[size]
            for level, size in openslide_levels
            if size in ours and isinstance(self._scales[level], int)
        }

    def _add_levels(self, native: JpegTiff) -> None:
        """Add levels that openslide does not list, such as an OME-TIFF's.

        There are no pixels of openslide's to compare them with; as all levels they are compared
        with finer levels before they are used.
        """
        for number, native_level in enumerate(native.levels[1:], start=1):
            size = (native_level.width_px, native_level.height_px)
            if self._trusted_native(0) is None:
                return
            if not min(native_level.sizes):
                self.notes.append(f"level {number} is not used: tiles of it are not stored")
                continue
            level = len(self._sizes)
            self._sizes.append(size)
            self._scales.append(level_scale(self.size_px, size))
            self._numbers[level], self._trusted[level] = number, True

    def _places(self, level: int) -> list[Place]:
        """Return places of the largest tiles (in bytes) of this level and level 0; read none."""
        if self._native is not None and {0, level} <= self._numbers.keys():
            base, grid = (self._native.levels[self._numbers[n]] for n in (0, level))
            return tile_places(base, grid)
        grids = [self._grids.get(self._sizes[n]) for n in (0, level)]
        if grids[0] is None or grids[1] is None:
            return super()._places(level)
        return tile_places(grids[0], grids[1])

    @cached_property
    def _grids(self) -> dict[tuple[int, int], TileGrid]:
        """Return the tile grids of all compressions, as far as the file is a TIFF."""
        return tile_grids(self.path)

    @property
    def name(self) -> str:  # type: ignore[override]
        """Return the name of the reader that read the pixels."""
        return "tiff" if any(self._trusted.values()) else "openslide"

    def _reduced(
        self, level: int, x: int, y: int, width: int, height: int, shrink: int
    ) -> RgbArray:
        """Return the pixels of `region`, reduced to a half, a fourth or an eighth by libjpeg."""
        native = self._trusted_native(level)
        if native and native.shrinks(self._numbers[level], shrink):
            return native.region(self._numbers[level], x, y, width, height, shrink=shrink)
        return super()._reduced(level, x, y, width, height, shrink)

    def _pixels(self, level: int, x: int, y: int, width: int, height: int) -> RgbArray:
        if native := self._trusted_native(level):
            return native.region(self._numbers[level], x, y, width, height)
        return super()._pixels(level, x, y, width, height)

    def _fast_shrink(self, level: int, factor: int) -> int:
        native = self._trusted_native(level)
        if native is None:
            return 1
        number = self._numbers[level]
        # At least a 4 x 4 mean is left to do, so that it hardly matters how the rest was reduced.
        fits = (n for n in SHRINKS if not factor % (4 * n) and native.shrinks(number, n))
        return max(fits, default=1)

    def stored_level(self, grid: Grid) -> int | None:
        """Return the level whose stored tiles are the tiles of a grid; None if there is none."""
        if self.converts_colours:
            return None
        level = self._level(grid.side_px / grid.tile_px)
        native = self._trusted_native(level)
        side_px = self._scales[level] * grid.tile_px
        if native is None or not side_px == grid.side_px == grid.step_px:
            return None
        native_level = native.levels[self._numbers[level]]
        return (
            level
            if native_level.tile_width_px == native_level.tile_height_px == grid.tile_px
            else None
        )

    def stored_jpeg(self, level: int, grid_y: int, grid_x: int) -> bytes | None:
        """Return a stored tile of a `stored_level`; None if the tile reaches beyond the slide.

        Raises:
            SlideError: the tile's bytes are missing, or end before the JPEG does.
        """
        native, number = self._native, self._numbers[level]
        if native is None:
            return None
        native_level = native.levels[number]
        right, bottom = (
            (grid_x + 1) * native_level.tile_width_px,
            (grid_y + 1) * native_level.tile_height_px,
        )
        if right > native_level.width_px or bottom > native_level.height_px:
            return None
        return native.jpeg(number, grid_y * native_level.columns + grid_x)

    def stored_tile_px(self, mpp: float) -> int | None:
        """Return the side of the square tiles stored at an mpp, or None if there are none."""
        if self.converts_colours:
            return None
        level = self._level(mpp / self.mpp)
        native = self._trusted_native(level)
        if native is None or abs(self._scales[level] * self.mpp / mpp - 1) > MPP_TOLERANCE:
            return None
        native_level = native.levels[self._numbers[level]]
        return (
            native_level.tile_width_px
            if native_level.tile_width_px == native_level.tile_height_px
            else None
        )

    def _trusted_native(self, level: int) -> JpegTiff | None:
        if self._native is None or level not in self._numbers:
            return None
        if level not in self._trusted:
            why = self._distrust(self._native, level)
            self._trusted[level] = why is None
            self.fallback = self.fallback or why
        return self._native if self._trusted[level] else None

    def _distrust(self, native: JpegTiff, level: int) -> str | None:
        """Return why a level is not to be read natively, after a check of some of its tiles."""
        native_level = native.levels[self._numbers[level]]
        if not min(native_level.sizes):
            return f"level {level} has tiles that are not stored"
        for number in compared_tiles(native_level):
            y, x = divmod(number, native_level.columns)
            size = (native_level.tile_width_px, native_level.tile_height_px)
            x, y = x * size[0], y * size[1]
            expected = super()._pixels(level, x, y, *size)
            try:
                ours = native.region(self._numbers[level], x, y, *size)
            except SlideError as error:
                return str(error)
            exact = not number or self._slide.level_downsamples[level] == self._scales[level]
            if why := _difference(ours, expected, exact=exact):
                return f"tile {number} of level {level} differs from openslide's {why}"
        return None

    def close(self) -> None:
        """Close the file."""
        super().close()
        if self._native is not None:
            self._native.close()
            self._native = None


def open_tiff(file: SlideFile, options: ReadOptions) -> SlideReader:
    """Open a slide that openslide reads, with native decoding of its JPEG tiles."""
    return TiffReader(file.path, options=options)


def _difference(ours: RgbArray, expected: RgbArray, *, exact: bool) -> str:
    """Return how pixels differ, or ""; by means where openslide is a part of a pixel off."""
    apart = np.abs(ours.astype(np.int16) - expected)
    if exact:
        return f"by {apart.max()}" if apart.any() else ""
    return f"by {apart.mean():.1f} in the mean" if apart.mean() > NEAR else ""
