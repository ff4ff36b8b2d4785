"""Slides through openslide: the universal reader, and what faster ones are compared with."""

import math
from types import TracebackType
from typing import Self

import cv2
import numpy as np
import numpy.typing as npt
import openslide

from ingest.errors import SlideError
from ingest.grid import Grid
from ingest.readers.ome import ome_mpp

MPP_RANGE = (0.05, 10.0)
OBJECTIVE_MPP = 10.0  # 20x is called 0.5 mpp; scanners differ from it by 10 % and more
LEVEL_SLACK = 1.01
BLOCK_PX = 2048

RgbArray = npt.NDArray[np.uint8]


class OpenSlideReader:
    """One open slide. It can't be pickled: workers open their own.

    Args:
        path: a local file.
        mpp: microns per pixel that overrule the file's own.

    Raises:
        SlideError: it is not a slide that openslide reads, or has no usable mpp.
    """

    name = "openslide"

    def __init__(self, path: str, *, mpp: float | None = None) -> None:
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideUnsupportedFormatError as error:
            msg = f"{path} is not a slide format that openslide reads (or it is truncated)"
            raise SlideError(msg) from error
        except openslide.OpenSlideError as error:
            msg = f"{path} can't be opened: {error}"
            raise SlideError(msg) from error
        self.path = path
        self._sizes: list[tuple[int, int]] = list(self._slide.level_dimensions)
        self.size_px: tuple[int, int] = self._slide.dimensions
        self.mpp, self.mpp_source = self._find_mpp(mpp)
        self._scales = [self._scale(*size) for size in self._sizes]

    def _scale(self, width: int, height: int) -> float:
        """Level-0 pixels to one of a level; whole where its size is that of a whole downsampling.

        4099 px are stored as 1024 at a fourth: openslide calls that 4.0029, and would be a pixel
        off after every 341.
        """
        scale = (self.size_px[0] / width + self.size_px[1] / height) / 2
        whole = round(scale)
        ends = zip(self.size_px, (width, height), strict=True)
        return whole if all(abs(full / whole - part) <= 1 for full, part in ends) else scale

    @property
    def levels(self) -> int:
        """Stored levels."""
        return len(self._sizes)

    @property
    def vendor(self) -> str | None:
        """The scanner family that openslide recognised."""
        vendor: str | None = self._slide.properties.get(openslide.PROPERTY_NAME_VENDOR)
        return vendor

    @property
    def objective(self) -> float | None:
        """Objective power as the file states it."""
        return _number(self._slide.properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER))

    def _find_mpp(self, given: float | None) -> tuple[float, str]:
        properties = self._slide.properties
        x = _number(properties.get(openslide.PROPERTY_NAME_MPP_X))
        y = _number(properties.get(openslide.PROPERTY_NAME_MPP_Y))
        if given is not None:
            value, source = given, "given"
        elif x and y:
            value, source = math.sqrt(x * y), "file"
        elif (found := ome_mpp(self.path)) is not None:
            value, source = found, "file"
        elif self.objective:
            value, source = OBJECTIVE_MPP / self.objective, "objective"
        else:
            msg = (
                f"{self.path} does not say its mpp, nor its objective; give the mpp in a "
                "manifest's column 'mpp' or with --mpp-override"
            )
            raise SlideError(msg)
        if not MPP_RANGE[0] <= value <= MPP_RANGE[1]:
            msg = (
                f"{self.path} says {value:g} mpp, outside {MPP_RANGE[0]} to {MPP_RANGE[1]}; give "
                "the true value in a manifest's column 'mpp' or with --mpp-override"
            )
            raise SlideError(msg)
        return value, source

    def _level(self, downsample: float) -> int:
        # A level stored as 4.0021 must serve a request for 4: openslide's own choice is level 0,
        # which reads 16 times the pixels.
        fits = [i for i, scale in enumerate(self._scales) if scale <= downsample * LEVEL_SLACK]
        return max(fits, default=0)

    def region(
        self, level: int, x: int, y: int, width: int, height: int, *, shrink: int = 1
    ) -> RgbArray:
        """Pixels [height, width, 3] of a level, reduced to 1 / shrink; white outside the slide.

        Args:
            level: 0 is the finest.
            x: left side, in pixels of the result.
            y: top side, likewise.
            width: of the result.
            height: of the result.
            shrink: whole number of the level's pixels along one of the result.

        Raises:
            SlideError: the pixels can't be read.
        """
        rgb = self._pixels(level, x * shrink, y * shrink, width * shrink, height * shrink)
        if shrink > 1:
            rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
        return rgb

    def _pixels(self, level: int, x: int, y: int, width: int, height: int) -> RgbArray:
        scale = self._slide.level_downsamples[level]
        at = (round(x * scale), round(y * scale))
        try:
            rgba = np.asarray(self._slide.read_region(at, level, (width, height)))
        except openslide.OpenSlideError as error:
            msg = f"{self.path}: pixels at {at} of level {level} can't be read: {error}"
            raise SlideError(msg) from error
        rgb = np.ascontiguousarray(rgba[..., :3])
        # Outside the slide openslide gives transparent black: it is glass, so white.
        rgb[rgba[..., 3] == 0] = 255
        return rgb

    def tile(self, grid: Grid, grid_y: int, grid_x: int) -> RgbArray:
        """The pixels of one tile [tile_px, tile_px, 3].

        Raises:
            SlideError: the pixels can't be read.
        """
        level = self._level(grid.side_px / grid.tile_px)
        side = grid.side_px / self._scales[level]
        shrink, rest = divmod(side, grid.tile_px)
        stride, between = divmod(grid.step_px * grid.tile_px, grid.side_px)
        if not rest and not between:
            x, y = grid_x * stride, grid_y * stride
            return self.region(level, x, y, grid.tile_px, grid.tile_px, shrink=int(shrink))
        step = grid.step_px / self._scales[level]
        x, y, px = round(grid_x * step), round(grid_y * step), round(side)
        rgb = self.region(level, x, y, px, px)
        size = (grid.tile_px, grid.tile_px)
        small: RgbArray = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        return small

    def overview(self, mpp: float) -> tuple[RgbArray, float]:
        """The whole slide at about `mpp`, read in blocks so that memory stays bounded.

        Returns:
            The pixels [H, W, 3], and the side of one of them in level-0 pixels. The last row and
            column may reach beyond the slide.
        """
        level, factor = self._overview_level(mpp)
        width, height = (-(-n // factor) for n in self._sizes[level])
        picture = np.empty((height, width, 3), np.uint8)
        step = max(1, BLOCK_PX // factor)
        for y in range(0, height, step):
            for x in range(0, width, step):
                block = picture[y : y + step, x : x + step]
                block[:] = self._block(level, x, y, block.shape[1], block.shape[0], factor)
        return picture, self._scales[level] * factor

    def piece(self, scale: float, x: int, y: int, width: int, height: int, factor: int) -> RgbArray:
        """Pixels of `scale` level-0 pixels each, for a part of an overview.

        Args:
            scale: side of a pixel in level-0 pixels.
            x: left side of the part, in pixels of the overview.
            y: top side of the part.
            width: of the part.
            height: of the part.
            factor: pixels of the result along one of the overview.

        Returns:
            [height * factor, width * factor, 3]; what lies beyond the slide is white.
        """
        level = self._level(scale)
        across, down = width * factor, height * factor
        shrink, rest = divmod(scale, self._scales[level])
        if shrink and not rest:
            return self.region(level, x * factor, y * factor, across, down, shrink=int(shrink))
        part = factor * scale / self._scales[level]
        rgb = self.region(level, *(round(n * part) for n in (x, y, width, height)))
        piece: RgbArray = cv2.resize(rgb, (across, down), interpolation=cv2.INTER_AREA)
        return piece

    def _overview_level(self, mpp: float) -> tuple[int, int]:
        """The level to read for an overview, and how many of its pixels make one."""
        level = self._level(max(1.0, mpp / self.mpp))
        return level, max(1, round(mpp / (self.mpp * self._scales[level])))

    def _block(self, level: int, x: int, y: int, width: int, height: int, factor: int) -> RgbArray:
        """Part of an overview; pixels at the end of the slide are means of what is inside."""
        across, down = self._sizes[level]
        wide = min(width * factor, across - x * factor)
        high = min(height * factor, down - y * factor)
        shrink = self._fast_shrink(level, factor)
        factor, wide, high = factor // shrink, -(-wide // shrink), -(-high // shrink)
        pixels = self.region(level, x * factor, y * factor, wide, high, shrink=shrink)
        beyond = ((0, -high % factor), (0, -wide % factor), (0, 0))
        padded = np.pad(pixels, beyond, mode="edge") if high % factor or wide % factor else pixels
        block: RgbArray = cv2.resize(padded, (width, height), interpolation=cv2.INTER_AREA)
        return block

    def _fast_shrink(self, level: int, factor: int) -> int:
        """A divisor of `factor` by which a level is cheaply reduced while it is read."""
        return 1

    def close(self) -> None:
        """Close the file."""
        self._slide.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
