"""Slides through openslide: the universal reader, which faster readers are compared with."""

import math

import numpy as np
import openslide

from ingest.errors import SlideError
from ingest.readers.level_reader import LevelReader
from ingest.readers.mpp import StatedMpp
from ingest.readers.slide_file import SlideFile
from ingest.readers.slide_reader import ReadOptions, RgbArray, SlideReader
from ingest.readers.tiff.ome import ome_mpp


def detect_vendor(path: str) -> str | None:
    """Return the format of a file as openslide names it; None if openslide does not read it."""
    vendor: str | None = openslide.OpenSlide.detect_format(path)
    return vendor


class OpenSlideReader(LevelReader):
    """One open slide, read by openslide.

    Args:
        path: a local file.
        mpp: microns per pixel that overrule the file's own.
        options: the settings to read it with, `mpp` included; in place of `mpp`.

    Raises:
        SlideError: the file is no slide that openslide reads, or has no usable mpp.
    """

    name = "openslide"

    def __init__(
        self, path: str, *, mpp: float | None = None, options: ReadOptions | None = None
    ) -> None:
        self._slide = _opened(path)
        properties = self._slide.properties
        self.vendor = properties.get(openslide.PROPERTY_NAME_VENDOR)
        self.objective = _number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER))
        self.icc_profile = _icc_profile(self._slide)
        sizes: list[tuple[int, int]] = list(self._slide.level_dimensions)
        try:
            super().__init__(path, sizes, options or ReadOptions(mpp=mpp))
        except SlideError:
            self._slide.close()
            raise

    def _stated_mpps(self) -> list[StatedMpp]:
        xml = ome_mpp(self.path)
        properties = self._slide.properties
        x = _number(properties.get(openslide.PROPERTY_NAME_MPP_X))
        y = _number(properties.get(openslide.PROPERTY_NAME_MPP_Y))
        tags = StatedMpp(x=x, y=y, source="file", place="its tags") if x and y else None
        return [one for one in (xml, tags) if one is not None]

    def _pixels(self, level: int, x: int, y: int, width: int, height: int) -> RgbArray:
        scale = self._slide.level_downsamples[level]
        at = (round(x * scale), round(y * scale))
        try:
            rgba = np.asarray(self._slide.read_region(at, level, (width, height)))
        except openslide.OpenSlideError as error:
            # After an error a handle refuses good pixels too.
            self._slide.close()
            self._slide = _opened(self.path)
            msg = f"{self.path}: pixels at {at} of level {level} can't be read: {error}"
            raise SlideError(msg) from error
        rgb: RgbArray = np.array(rgba[..., :3], order="C")  # a copy: one pixel's view is read-only
        # Outside the slide openslide gives transparent black: it is glass, so white.
        rgb[rgba[..., 3] == 0] = 255
        return rgb

    def close(self) -> None:
        """Close the file."""
        self._slide.close()


def open_with_openslide(file: SlideFile, options: ReadOptions) -> SlideReader:
    """Open a slide with openslide alone, which faster readers are compared with."""
    return OpenSlideReader(file.path, options=options)


def _opened(path: str) -> openslide.OpenSlide:
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        msg = f"{path} is not a slide format that openslide reads (or it is truncated)"
        raise SlideError(msg) from error
    except openslide.OpenSlideError as error:
        msg = f"{path} can't be opened: {error}"
        raise SlideError(msg) from error


def _icc_profile(slide: openslide.OpenSlide) -> bytes | None:
    try:
        profile = slide.color_profile
    except Exception:  # noqa: BLE001 - a damaged profile (Pillow raises this or that) is none
        return None
    return profile.tobytes() if profile is not None else None


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number > 0 else None
