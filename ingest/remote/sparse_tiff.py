"""Which bytes of a slide are needed for some of its levels, and whether that is worth the trouble.

Only for slides that `JpegTiff` reads: a hole in the file is then no JPEG, which it and openslide
both refuse, so nothing wrong can come out of what was not fetched.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import tifffile

from ingest.errors import SlideError
from ingest.readers import level_check
from ingest.readers.level_reader import LEVEL_SLACK
from ingest.readers.open_slide import open_slide
from ingest.readers.slide_reader import ReadOptions
from ingest.readers.tiff.jpeg_tiff import (
    JpegLevel,
    NotNativeError,
    compared_tiles,
    read_levels,
)
from ingest.readers.tiff.tiff_images import JPEG, largest, tiff_images
from ingest.readers.tiff.tile_grids import tile_places
from ingest.remote.partial_file import PartialFile, PartialReader, Range

SUFFIXES = (".svs", ".tif", ".tiff", ".svslide")
# At 2.0 mpp a slide of 0.25 or 0.5 gives 2-8 %; what needs half of the file is copied in one go.
MOST_SHARE = 0.5
# Slides of 0.25 and 0.5 mpp are read at level 0 for anything finer, which is nearly all bytes.
COARSE_MPP = 0.75
PAGES_MAX = 100


@dataclass(frozen=True, kw_only=True)
class FetchPlan:
    """The levels of a slide that are to be fetched, and why.

    Attributes:
        sparse: whether levels are left out.
        levels: numbers of the levels to fetch in full; all levels if not sparse.
        share: estimated share of the file that will be fetched.
        reason: why levels are left out, or why not.
    """

    sparse: bool
    levels: tuple[int, ...]
    share: float
    reason: str


def level_ranges(
    levels: Sequence[JpegLevel], level: int, tiles: Sequence[int] | None = None
) -> list[Range]:
    """Return the byte ranges [start, end) of a level's tiles, for `Fetched.need`.

    Args:
        levels: levels of the slide, as `read_levels` returns them.
        level: number of the level.
        tiles: numbers of the tiles, row after row; all if None. Unstored tiles are left out.
    """
    grid = levels[level]
    numbers = range(len(grid.offsets)) if tiles is None else tiles
    return _ranges([grid.offsets[n] for n in numbers], [grid.sizes[n] for n in numbers])


def _ranges(offsets: Sequence[int], sizes: Sequence[int]) -> list[Range]:
    return [(at, at + size) for at, size in zip(offsets, sizes, strict=True) if size]


def plan_fetch(
    levels: Sequence[JpegLevel], size: int, *, slide_mpp: float, mpps: Sequence[float]
) -> FetchPlan:
    """Plan to fetch a slide whole or in part, for tiles of these mpps.

    All levels from the one that the finest mpp is read from are taken in full: tiles of glass,
    which alone could be left out, have few bytes.

    Args:
        levels: levels of the slide, finest first.
        size: bytes of the file.
        slide_mpp: microns per pixel of level 0.
        mpps: the mpps that will be read from the slide, overviews included.
    """
    base = levels[0]
    downsamples = [
        (base.width_px / level.width_px + base.height_px / level.height_px) / 2 for level in levels
    ]
    downsample = min(mpps) / slide_mpp * LEVEL_SLACK
    finest = max((n for n, factor in enumerate(downsamples) if factor <= downsample), default=0)
    needed = tuple(range(finest, len(levels)))
    share = sum(sum(levels[number].sizes) for number in needed) / size
    every = tuple(range(len(levels)))
    if finest == 0:
        reason = f"{min(mpps):g} mpp is read from the finest level"
        return FetchPlan(sparse=False, levels=every, share=1.0, reason=reason)
    if share > MOST_SHARE:
        reason = f"levels {finest} and up are {share:.0%} of the file"
        return FetchPlan(sparse=False, levels=every, share=1.0, reason=reason)
    reason = f"{min(mpps):g} mpp is read from level {finest}"
    return FetchPlan(sparse=True, levels=needed, share=share, reason=reason)


def check_ranges(levels: Sequence[JpegLevel], needed: Sequence[int]) -> list[Range]:
    """Return the byte ranges of the tiles that levels are compared with before use.

    Args:
        levels: levels of the slide, finest first.
        needed: numbers of the levels that are used, and fetched in full.
    """
    sizes = [(level.width_px, level.height_px) for level in levels]
    scales = [level_check.level_scale(sizes[0], size) for size in sizes]
    tiles: dict[int, set[int]] = {}
    todo = [number for number in needed if number]
    for number in todo:
        finer = [n for n, scale in enumerate(scales) if scale < scales[number]]
        reference = level_check.reference_level(scales, number, finer)
        ratio = scales[number] / scales[reference]
        patches = (
            level_check.patch_at(p, sizes[number]) for p in tile_places(levels[0], levels[number])
        )
        for patch in (patch for patch in patches if patch):
            square = level_check.finer_square(patch, ratio)
            tiles.setdefault(reference, set()).update(_tiles_under(levels[reference], square))
            if number not in needed:
                box = level_check.surroundings(patch, sizes[number])
                around = level_check.Patch(x=box[0], y=box[1], side=max(box[2:]))
                tiles.setdefault(number, set()).update(_tiles_under(levels[number], around))
        if reference and reference not in todo:
            todo.append(reference)
    return [
        one
        for number, which in tiles.items()
        if number not in needed
        for one in level_ranges(levels, number, [*which, *compared_tiles(levels[number])])
    ]


def _tiles_under(level: JpegLevel, square: level_check.Patch) -> Iterator[int]:
    """Yield the numbers of the tiles that a square of a level lies on."""
    last_row = (level.height_px - 1) // level.tile_height_px
    ends = (square.x + square.side, square.y + square.side)
    for row in range(square.y // level.tile_height_px, ends[1] // level.tile_height_px + 1):
        for column in range(square.x // level.tile_width_px, ends[0] // level.tile_width_px + 1):
            if row <= last_row and column < level.columns:
                yield row * level.columns + column


def unfit_levels(path: str, mpp: float | None, finest_mpp: float) -> str:
    """Return why levels that coarse tiles are read from do not show level 0's picture, or "".

    Args:
        path: the file as far as it was fetched, tiles of `check_ranges` included.
        mpp: microns per pixel of level 0, where a better value than the file's is known.
        finest_mpp: the finest mpp that will be read from the slide.
    """
    options = ReadOptions(mpp=mpp, allow_anisotropic=True)
    try:
        with open_slide(path, options, reader="tiff") as slide:
            return "; ".join(slide.unfit_levels(finest_mpp / slide.mpp / LEVEL_SLACK**2))
    except SlideError as error:
        return str(error)


def fetch_directories(file: PartialFile) -> list[JpegLevel]:
    """Fetch the directories of a TIFF with all their values, its coarsest level, and its label.

    These are the bytes that openslide opens; its checksum is of the coarsest level. Images that are
    no JPEGs (labels, mostly) are fetched since a hole in them could pass for pixels.

    Returns:
        The slide's levels, finest first.

    Raises:
        NotNativeError: the file is no TIFF whose levels `JpegTiff` reads.
        SlideError: the file can't be read.
    """
    try:
        with PartialReader(file) as reader, tifffile.TiffFile(reader) as tiff:
            for number, page in enumerate(tiff.pages):
                if number == PAGES_MAX:  # they may also lead in a circle
                    msg = f"it has more than {PAGES_MAX} images"
                    raise NotNativeError(msg)
                if page.subifds:
                    msg = "its levels are in sub-directories, which are compared with level 0"
                    raise NotNativeError(msg)
                for tag in page.tags:
                    _ = tag.value  # reading it is what fetches it
                if page.compression != JPEG:
                    file.fill(_ranges(page.dataoffsets, page.databytecounts))
    except (NotNativeError, SlideError):
        raise
    except Exception as error:  # tifffile raises nearly anything on files that are not TIFF
        msg = f"its TIFF structure can't be read: {error}"
        raise NotNativeError(msg) from error
    images = tiff_images(str(file.local))
    if images and largest(images).number != 1:
        msg = "its largest image is not its first"
        raise NotNativeError(msg)
    levels = read_levels(str(file.local))
    file.fill(level_ranges(levels, len(levels) - 1))
    return levels


def slide_mpp(path: str, mpp: float | None) -> float:
    """Return the microns per pixel of level 0, as the slide's reader will find them.

    Raises:
        SlideError: the file does not open, or states no mpp.
    """
    options = ReadOptions(mpp=mpp, allow_anisotropic=True)  # whether it may be is decided later
    with open_slide(path, options, reader="openslide") as slide:
        return slide.mpp
