"""The faults of a TIFF that no reader must ignore: it is cut off, or is no colour image.

openslide and libtiff open files whose last part is missing, and turn 16-bit, greyscale, CMYK and
many-channel images into 8-bit RGB that looks like a slide: nearly black, or in false colours.
"""

import io
import logging
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import tifffile

from ingest.errors import SlideError

# Readings of three channels that give the colours one would see.
COLOURS = {2: "RGB", 3: "palette", 6: "YCbCr"}
OTHERS = {
    0: "greyscale, perhaps fluorescence",
    1: "greyscale, perhaps fluorescence",
    5: "CMYK",
    8: "CIELab",
    9: "ICCLab",
    10: "ITULab",
}
ALPHA = {1, 2}
SIDE_MAX_PX = 2_000_000  # 20 cm at 0.1 mpp
TILE_MAX_PX = 8192  # one tile of that side takes 256 MB as openslide decodes it
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
TYPE_BYTES |= {13: 4, 16: 8, 17: 8, 18: 8}
DIRECTORIES_MAX = 10_000

# It prints what is odd about a file; what matters of it becomes the slide's reason.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def check_tiff(path: str) -> None:
    """Refuse a TIFF that is cut off, claims data it does not hold, or is no 8-bit colour image.

    A file that is no TIFF, or can't be parsed, passes: its reader decides whether it is a slide.

    Raises:
        SlideError: the file is such a TIFF; the text states the fault.
    """
    if path.lower().endswith(".ndpi"):  # offsets beyond 4 GB are coded in a way of its own
        return
    try:
        with Path(path).open("rb") as file:
            end, size = _directories_end(path, file), os.fstat(file.fileno()).st_size
            pages = _pages(file) if end is not None else []
    except OSError:
        return  # it is gone, or can't be read: its reader says so
    if end is None:
        return
    end = max([end, *(page.end for page in pages)])
    if end > size:
        msg = (
            f"{path} is cut off: what it lists reaches to byte {end}, and it has {size}; copy it "
            "again from where it came from"
        )
        raise SlideError(msg)
    if pages:
        largest = max(pages, key=lambda page: page.width_px * page.height_px)
        _check_claims(path, largest)
        _check_colour(path, largest)


def _directories_end(path: str, file: BinaryIO) -> int | None:
    """Return the byte at which a TIFF's directories and their values end; None for other files.

    Raises:
        SlideError: the directories form an endless chain, in which tifffile would hang.
    """
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        return None
    version, *_ = struct.unpack_from(f"{order}H", head, 2)
    if version not in (42, 43):
        return None
    big = version == 43
    at = struct.unpack_from(f"{order}Q", head.ljust(16, b"\0"), 8) if big else None
    at = at or struct.unpack_from(f"{order}I", head, 4)
    end, offset, visited = len(head), at[0], set[int]()
    while offset:
        if offset in visited or len(visited) == DIRECTORIES_MAX:
            msg = f"{path} is damaged: its directories of images lead in a circle, or are too many"
            raise SlideError(msg)
        visited.add(offset)
        reach, offset = _directory(file, offset, order, big=big)
        end = max(end, reach)
    return end


def _directory(file: BinaryIO, offset: int, order: str, *, big: bool) -> tuple[int, int]:
    """Return the byte at which a directory and its values end, and the next directory's place."""
    count_form, entry_form, next_form = ("Q", "HHQQ", "Q") if big else ("H", "HHII", "I")
    count_bytes, entry_bytes, next_bytes = (8, 20, 8) if big else (2, 12, 4)
    file.seek(offset)
    head = file.read(count_bytes)
    if len(head) < count_bytes:
        return offset + count_bytes, 0
    count = struct.unpack(order + count_form, head)[0]
    end = offset + count_bytes + count * entry_bytes + next_bytes
    body = file.read(min(count, 1 << 16) * entry_bytes + next_bytes)
    if offset + count_bytes + len(body) < end:
        return end, 0
    for number in range(count):
        _, kind, values, at = struct.unpack_from(order + entry_form, body, number * entry_bytes)
        size = TYPE_BYTES.get(kind, 0) * values
        if size > next_bytes:  # else the value stands in the entry itself
            end = max(end, at + size)
    return end, struct.unpack(order + next_form, body[-next_bytes:])[0]


def _pages(file: BinaryIO) -> list["_Page"]:
    """Return the images of a TIFF; an empty list if it can't be parsed."""
    file.seek(0, io.SEEK_SET)
    try:
        with tifffile.TiffFile(file) as tiff:
            return [_Page(page) for page in tiff.pages]
    except OSError:
        raise
    except Exception:  # noqa: BLE001 - tifffile raises nearly anything on files that are not TIFF
        return []


class _Page:
    """The tags of one image of a TIFF that are checked. Untyped, as tifffile's pages are."""

    def __init__(self, page: Any) -> None:  # noqa: ANN401
        self.width_px, self.height_px = int(page.imagewidth), int(page.imagelength)
        self.tile_px = max(int(page.tilewidth), int(page.tilelength)) if page.is_tiled else 0
        self.bits, self.samples = page.bitspersample, int(page.samplesperpixel)
        self.photometric = int(page.photometric)
        self.extra = {int(one) for one in page.extrasamples}
        ends = zip(page.dataoffsets, page.databytecounts, strict=False)
        self.end = max((at + size for at, size in ends if size), default=0)
        self.stored = len(page.dataoffsets)
        planes = self.samples if int(page.planarconfig) == 2 else 1
        self.expected = planes * _grid(page) * max(1, int(page.imagedepth))


def _grid(page: Any) -> int:  # noqa: ANN401 - a tifffile page, untyped
    """Return the number of tiles or strips that an image of this size has."""
    if page.is_tiled:
        across = -(-int(page.imagewidth) // int(page.tilewidth))
        return across * -(-int(page.imagelength) // int(page.tilelength))
    rows = min(int(page.rowsperstrip or page.imagelength), int(page.imagelength))
    return -(-int(page.imagelength) // max(1, rows))


def _check_claims(path: str, page: _Page) -> None:
    claim = f"{path} claims {page.width_px} x {page.height_px} px"
    if not 0 < page.width_px <= SIDE_MAX_PX or not 0 < page.height_px <= SIDE_MAX_PX:
        msg = f"{claim}; sides of 1 to {SIDE_MAX_PX} px are read"
        raise SlideError(msg)
    if page.tile_px > TILE_MAX_PX:
        msg = f"{claim} in tiles of {page.tile_px} px; tiles of up to {TILE_MAX_PX} px are read"
        raise SlideError(msg)
    if page.stored != page.expected:
        msg = f"{claim}, which are {page.expected} tiles or strips, and lists {page.stored}"
        raise SlideError(msg)


def _check_colour(path: str, page: _Page) -> None:
    must = "an 8-bit colour image (RGB or YCbCr) is needed, since tiles are stored as such"
    bits = page.bits if isinstance(page.bits, tuple) else (page.bits,)
    if set(bits) != {8}:
        msg = f"{path} has {'/'.join(map(str, sorted(set(bits))))} bits per sample; {must}"
        raise SlideError(msg)
    if page.photometric not in COLOURS:
        kind = OTHERS.get(page.photometric, f"of photometric kind {page.photometric}")
        msg = f"{path} is {kind}; {must}"
        raise SlideError(msg)
    colours = 1 if page.photometric == 3 else 3
    with_alpha = page.samples == colours + 1 and page.extra <= ALPHA and page.extra
    if page.samples != colours and not with_alpha:
        msg = f"{path} has {page.samples} channels; {must}"
        raise SlideError(msg)
