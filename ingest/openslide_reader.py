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

MPP_RANGE = (0.05, 10.0)
LEVEL_SLACK = 1.01
STRIP_PX = 2048

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
        self.size_px: tuple[int, int] = self._slide.dimensions
        self.mpp, self.mpp_source = self._find_mpp(mpp)
        self._downsamples = [
            (self.size_px[0] / w + self.size_px[1] / h) / 2 for w, h in self._slide.level_dimensions
        ]

    @property
    def levels(self) -> int:
        """Stored levels."""
        return int(self._slide.level_count)

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
        source = "file" if given is None else "given"
        value = given if given is not None else math.sqrt(x * y) if x and y else None
        if value is None:
            msg = (
                f"{self.path} does not say its mpp; give it in a manifest's column 'mpp' or "
                "with --mpp-override"
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
        fits = [i for i, d in enumerate(self._downsamples) if d <= downsample * LEVEL_SLACK]
        return max(fits, default=0)

    def _region(self, x: int, y: int, level: int, size: tuple[int, int]) -> RgbArray:
        try:
            rgba = np.asarray(self._slide.read_region((x, y), level, size))
        except openslide.OpenSlideError as error:
            msg = f"{self.path}: pixels at ({x}, {y}) of level {level} can't be read: {error}"
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
        side = round(grid.side_px / self._downsamples[level])
        x, y = grid_x * grid.side_px, grid_y * grid.side_px
        rgb = self._region(x, y, level, (side, side))
        if side != grid.tile_px:
            size = (grid.tile_px, grid.tile_px)
            rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        return rgb

    def overview(self, mpp: float) -> tuple[RgbArray, float]:
        """The whole slide at about `mpp`, read in strips so that memory stays bounded.

        Returns:
            The pixels [H, W, 3], and the side of one of them in level-0 pixels. The last row and
            column may reach beyond the slide.
        """
        level = self._level(max(1.0, mpp / self.mpp))
        factor = max(1, round(mpp / (self.mpp * self._downsamples[level])))
        width, height = self._slide.level_dimensions[level]
        step = max(1, STRIP_PX // factor) * factor
        rows = [
            np.concatenate(
                [
                    self._block(level, x, y, (min(step, width - x), min(step, height - y)), factor)
                    for x in range(0, width, step)
                ],
                axis=1,
            )
            for y in range(0, height, step)
        ]
        return np.concatenate(rows), self._downsamples[level] * factor

    def _block(self, level: int, x: int, y: int, size: tuple[int, int], factor: int) -> RgbArray:
        scale = self._downsamples[level]
        pixels = self._region(round(x * scale), round(y * scale), level, size)
        beyond = [(0, -n % factor) for n in size[::-1]]
        padded = np.pad(pixels, (*beyond, (0, 0)), mode="edge")
        small = (padded.shape[1] // factor, padded.shape[0] // factor)
        block: RgbArray = cv2.resize(padded, small, interpolation=cv2.INTER_AREA)
        return block

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
