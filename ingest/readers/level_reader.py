"""The part that readers of pyramids share: levels, microns per pixel, tiles, overviews.

A subclass returns the sizes of its levels and their pixels. Which level serves a request is decided
here, and only among levels that show the picture of level 0 (see `level_check`): each is compared
when it is first needed, and left out with a note if it does not.
"""

import abc
import contextlib
from functools import cached_property
from types import TracebackType
from typing import Self

import cv2
import numpy as np

from ingest.errors import SlideError
from ingest.grid import Grid
from ingest.readers import level_check
from ingest.readers.colour import SrgbTransform
from ingest.readers.mpp import StatedMpp, choose_mpp, given_mpp
from ingest.readers.slide_reader import ReadOptions, RgbArray

LEVEL_SLACK = 1.01
BLOCK_PX = 2048
WHOLE_LEVEL_PX = 2_000_000  # a level of so many pixels is looked through for structure
LOOKED_THROUGH = 2
SAMPLES, SAMPLE_PX = 12, 32


class LevelReader(abc.ABC):
    """A `SlideReader` of a pyramid of levels.

    Args:
        path: a local file.
        sizes: width and height of each level, level 0 first.
        options: the settings to read it with.

    Attributes:
        name: name of the reader that read the pixels.
        fallback: why openslide reads the slide in place of the native reader; None if it does not.
        notes: oddities of the slide, each in one line.
        mpp: microns per pixel of level 0, the mean of `mpp_x` and `mpp_y`.
        mpp_source: `given`, `file` or `objective`.

    Raises:
        SlideError: there is no usable mpp, or the slide's colours can't be converted.
    """

    name = "none"
    fallback: str | None = None
    vendor: str | None = None
    objective: float | None = None
    icc_profile: bytes | None = None
    turns_upright = False

    def __init__(
        self, path: str, sizes: list[tuple[int, int]], options: ReadOptions | None = None
    ) -> None:
        options = options or ReadOptions()
        self.path = path
        self.notes: list[str] = []
        self._sizes = sizes
        self.size_px = sizes[0]
        chosen, notes = choose_mpp(
            path,
            self._stated_mpps() if options.mpp is None else [given_mpp(options.mpp)],
            self.objective,
            allow_anisotropic=options.allow_anisotropic,
        )
        self.notes += notes
        self.mpp, self.mpp_source = chosen.mean, chosen.source
        self.mpp_x, self.mpp_y = chosen.x, chosen.y
        self._scales = [level_check.level_scale(self.size_px, size) for size in sizes]
        self._unfit: dict[int, str] = {0: ""}
        self._structure: dict[int, list[level_check.Place]] = {}
        self._colours = self._colour_transform() if options.icc else None

    @abc.abstractmethod
    def _stated_mpps(self) -> list[StatedMpp]:
        """Return the microns per pixel that the file states, preferred values first."""

    @abc.abstractmethod
    def _pixels(self, level: int, x: int, y: int, width: int, height: int) -> RgbArray:
        """Return stored pixels [height, width, 3] of a level; white outside the slide."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close the file."""

    def _colour_transform(self) -> SrgbTransform | None:
        if self.icc_profile is None:
            self.notes.append("it has no ICC profile: colours are as they are stored")
            return None
        return SrgbTransform(self.path, self.icc_profile)

    @property
    def levels(self) -> int:
        """Return the number of stored levels."""
        return len(self._sizes)

    @property
    def converts_colours(self) -> bool:
        """Whether pixels are returned in other colours than they are stored in."""
        return self._colours is not None

    # ------------------------------------------------------------------ which level

    def _level(self, downsample: float) -> int:
        """Return the coarsest fit level of at most this scale.

        A level stored as 4.0021 must serve a request for 4: openslide's own choice is level 0,
        which reads 16 times the pixels.
        """
        coarse_first = sorted(range(self.levels), key=lambda level: -self._scales[level])
        fits = (n for n in coarse_first if self._scales[n] <= downsample * LEVEL_SLACK)
        return next((level for level in fits if self.is_fit(level)), 0)

    def is_fit(self, level: int) -> bool:
        """Return whether a level shows the picture of level 0; an unfit level is noted."""
        if level not in self._unfit:
            self._unfit[level] = why = self._why_unfit(level)
            if why:
                self.notes.append(f"level {level} is not used: {why}")
        return not self._unfit[level]

    def unfit_levels(self, downsample: float) -> list[str]:
        """Check all levels of at least this scale, and return the notes on unfit levels."""
        levels = [n for n in range(self.levels) if self._scales[n] * LEVEL_SLACK >= downsample]
        return [f"level {n}: {self._unfit[n]}" for n in levels if not self.is_fit(n)]

    def _why_unfit(self, level: int) -> str:
        size = self._sizes[level]
        if why := level_check.scales_differ(self.size_px, size):
            return why
        usable = [n for n, scale in enumerate(self._scales) if scale < self._scales[level]]
        reference = level_check.reference_level(self._scales, level, usable)
        while not self.is_fit(reference):
            usable.remove(reference)
            reference = level_check.reference_level(self._scales, level, usable)
        patches = [level_check.patch_at(place, size) for place in self._places(level)]
        if None in patches:
            return f"{size[0]} x {size[1]} px are too few to be compared with level 0"
        compared = [self._difference(level, reference, one) for one in patches if one]
        if all(why is None for why in compared):
            return f"no part of it can be compared: level {reference} can't be read there"
        return next((why for why in compared if why), "")

    def _difference(self, level: int, reference: int, patch: level_check.Patch) -> str | None:
        """Return how a patch of a level differs from a finer level that is known to be fit.

        Returns:
            The difference in words; "" if there is none; None where the finer level can't be read.
        """
        ratio = self._scales[level] / self._scales[reference]
        n, whole = patch.side, round(ratio)
        try:
            if ratio == whole:
                finer = self._reduced(reference, patch.x, patch.y, n, n, whole)
            else:
                square = level_check.finer_square(patch, ratio)
                part = self._reduced(reference, square.x, square.y, square.side, square.side, 1)
                finer = cv2.resize(part, (n, n), interpolation=cv2.INTER_AREA)
        except SlideError:
            return None
        x, y, width, height = level_check.surroundings(patch, self._sizes[level])
        try:
            around = self._pixels(level, x, y, width, height)
        except SlideError as error:
            return f"it can't be read ({error})"
        return level_check.pictures_differ(finer, around, patch.x - x, patch.y - y)

    def _places(self, level: int) -> list[level_check.Place]:
        """Return places with structure, where a difference would show."""
        small = [n for n, (w, h) in enumerate(self._sizes) if w * h <= WHOLE_LEVEL_PX and n]
        small.sort(key=lambda n: abs(self._scales[n] - self._scales[level]))
        places = [place for n in small[:LOOKED_THROUGH] for place in self._structure_of(n)]
        return list(dict.fromkeys([*places, *self._sampled_places]))

    def _structure_of(self, level: int) -> list[level_check.Place]:
        if level not in self._structure:
            try:
                picture = self._pixels(level, 0, 0, *self._sizes[level])
                self._structure[level] = level_check.structured_places(picture)
            except SlideError:  # of a level that will be found to be unfit for that
                self._structure[level] = []
        return self._structure[level]

    @cached_property
    def _sampled_places(self) -> list[level_check.Place]:
        """Return places with structure among a few samples of level 0."""
        width, height = self.size_px
        side = min(SAMPLE_PX, width, height)
        rows, columns = (max(1, min(SAMPLES, n // side)) for n in (height, width))
        spread = np.zeros((rows, columns))
        for row in range(rows):
            for column in range(columns):
                y = round((row + 0.5) / rows * height - side / 2)
                x = round((column + 0.5) / columns * width - side / 2)
                with contextlib.suppress(SlideError):  # a damaged tile is no reason to fail yet
                    spread[row, column] = self._pixels(0, x, y, side, side).std(axis=(0, 1)).mean()
        return level_check.richest_places(spread)

    # ------------------------------------------------------------------ pixels

    def region(
        self, level: int, x: int, y: int, width: int, height: int, *, shrink: int = 1
    ) -> RgbArray:
        """Return pixels [height, width, 3] of a level, reduced to 1 / shrink; white outside it.

        Args:
            level: number of the level; 0 is the finest.
            x: left side, in pixels of the result.
            y: top side, in pixels of the result.
            width: width of the result.
            height: height of the result.
            shrink: whole number of the level's pixels along one pixel of the result.

        Raises:
            SlideError: the pixels can't be read.
        """
        rgb = self._reduced(level, x, y, width, height, shrink)
        return rgb if self._colours is None else self._colours(rgb)

    def _reduced(
        self, level: int, x: int, y: int, width: int, height: int, shrink: int
    ) -> RgbArray:
        """Return the pixels of `region` in the stored colours."""
        rgb = self._pixels(level, x * shrink, y * shrink, width * shrink, height * shrink)
        if shrink > 1:
            rgb = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
        return rgb

    def tile(self, grid: Grid, grid_y: int, grid_x: int) -> RgbArray:
        """Return the pixels of one tile [tile_px, tile_px, 3].

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
        """Return the whole slide at about `mpp`, and the side of its pixels in level-0 pixels.

        It is read in blocks, so that memory stays bounded.

        Returns:
            The pixels [H, W, 3], and the side of one such pixel in level-0 pixels. The last row and
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
        """Return pixels of `scale` level-0 pixels each, for a part of an overview.

        Args:
            scale: side of a pixel in level-0 pixels.
            x: left side of the part, in pixels of the overview.
            y: top side of the part.
            width: width of the part.
            height: height of the part.
            factor: pixels of the result along one pixel of the overview.

        Returns:
            Pixels [height * factor, width * factor, 3]; what lies beyond the slide is white.
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
        """Return the level to read for an overview, and its pixels along one overview pixel."""
        level = self._level(max(1.0, mpp / self.mpp))
        return level, max(1, round(mpp / (self.mpp * self._scales[level])))

    def _block(self, level: int, x: int, y: int, width: int, height: int, factor: int) -> RgbArray:
        """Return a part of an overview; pixels at the slide's end are means of the slide alone."""
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
        """Return a divisor of `factor` by which a level is cheaply reduced while it is read."""
        return 1

    def stored_level(self, grid: Grid) -> int | None:
        """Return the level whose stored tiles are the tiles of a grid; None if there is none."""
        return None

    def stored_jpeg(self, level: int, grid_y: int, grid_x: int) -> bytes | None:
        """Return a stored tile of a `stored_level`; None if the tile reaches beyond the slide.

        Raises:
            SlideError: the tile's bytes are missing, or end before the JPEG does.
        """
        return None

    def stored_tile_px(self, mpp: float) -> int | None:
        """Return the side of the square tiles stored at an mpp, or None if there are none."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()
