"""Aperio-like SVS files from ready JPEG tiles: a small TIFF writer.

tifffile needs imagecodecs as soon as the compression is JPEG, even for bytes that are already
encoded. Classic little-endian TIFF (below 4 GiB) is short enough to write here, and it holds no
clock and no host name, so that equal pixels give equal files.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

Pixels = npt.NDArray[np.uint8]

TILE_PX = 256
JPEG_QUALITY = 80
OBJECTIVE = 20

_SHORT, _LONG, _ASCII, _RATIONAL, _BYTES = 3, 4, 2, 5, 7
_PACK = {_SHORT: "H", _LONG: "I"}
_HEADER = "Aperio Image Library v12.0.15 (synthetic)\r\n"


@dataclass(frozen=True, kw_only=True)
class Page:
    """One TIFF directory with its JPEG streams.

    Attributes:
        width_px: width of the image.
        height_px: height of the image.
        mpp: microns per pixel, for the resolution tags.
        description: the ImageDescription tag, from which OpenSlide reads the vendor and the name.
        chunks: JPEG streams, row by row. A page that is not tiled has one, the whole image.
        tables: shared JPEGTables; empty for a page whose one stream holds its own (not tiled).
        subfile: the NewSubfileType tag; Aperio marks the label with 1 and the macro with 9.
    """

    width_px: int
    height_px: int
    mpp: float
    description: str
    chunks: Sequence[bytes]
    tables: bytes = b""
    subfile: int = 0


def encode_jpeg(rgb: Pixels) -> bytes:
    """Encode an (H, W, 3) RGB image as a YCbCr 4:2:0 JPEG stream."""
    stream: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(rgb),
        quality=JPEG_QUALITY,
        colorspace="RGB",
        colorsubsampling="420",
        fastdct=False,
    )
    return stream


def split_jpeg(stream: bytes) -> tuple[bytes, bytes]:
    """Split a JPEG stream into its tables and the abbreviated rest, as TIFF shares them.

    Args:
        stream: a baseline JPEG stream with one scan.

    Returns:
        The quantisation and Huffman tables as a stream of their own, and the stream without them
        and without the JFIF header, which TIFF tags replace.
    """
    tables, rest, at = b"\xff\xd8", b"\xff\xd8", 2
    while True:
        marker, length = struct.unpack(">xBH", stream[at : at + 4])
        segment = stream[at : at + 2 + length]
        if marker in (0xDB, 0xC4):
            tables += segment
        elif marker != 0xE0:
            rest += segment
        at += 2 + length
        if marker == 0xDA:
            return tables + b"\xff\xd9", rest + stream[at:]


def encode_tile(rgb: Pixels) -> bytes:
    """Encode one tile as an abbreviated stream that needs `shared_tables`."""
    return split_jpeg(encode_jpeg(rgb))[1]


def shared_tables() -> bytes:
    """Return the JPEG quantisation and Huffman tables that all tiles share."""
    return split_jpeg(encode_jpeg(np.zeros((TILE_PX, TILE_PX, 3), np.uint8)))[0]


def _tiles(image: Pixels) -> Iterator[Pixels]:
    height, width = image.shape[:2]
    below, right = -height % TILE_PX, -width % TILE_PX
    padded = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)
    for y in range(0, height, TILE_PX):
        for x in range(0, width, TILE_PX):
            yield padded[y : y + TILE_PX, x : x + TILE_PX]


def _whole(image: Pixels, description: str, mpp: float, subfile: int = 0) -> Page:
    height, width = image.shape[:2]
    return Page(
        width_px=width,
        height_px=height,
        mpp=mpp,
        description=f"{_HEADER}{description}",
        chunks=[encode_jpeg(image)],
        subfile=subfile,
    )


def _label(slide_id: str) -> Pixels:
    label = np.full((420, 400, 3), 255, np.uint8)
    cv2.putText(label, slide_id, (20, 200), cv2.FONT_HERSHEY_SIMPLEX, 1.6, (0, 0, 0), 3)
    return label


def _macro(thumbnail: Pixels, label: Pixels) -> Pixels:
    """Return a picture of the whole glass: the paper label at the left, the section beside it."""
    macro = np.full((431, 1280, 3), 232, np.uint8)
    macro[:, :400] = cv2.resize(label, (400, 431), interpolation=cv2.INTER_AREA)
    height, width = thumbnail.shape[:2]
    scale = min(380 / height, 800 / width)
    size = (round(width * scale), round(height * scale))
    section = cv2.resize(thumbnail, size, interpolation=cv2.INTER_AREA)
    y, x = (431 - size[1]) // 2, 400 + (880 - size[0]) // 2
    macro[y : y + size[1], x : x + size[0]] = section
    return macro


def _level(
    base: str, note: str, size_px: tuple[int, int], mpp: float, tiles: Sequence[bytes]
) -> Page:
    return Page(
        width_px=size_px[0],
        height_px=size_px[1],
        mpp=mpp,
        description=f"{_HEADER}{base}{note}",
        chunks=tiles,
        tables=shared_tables(),
    )


def aperio_pages(
    slide_id: str,
    size_px: tuple[int, int],
    mpp: float,
    base_tiles: Sequence[bytes],
    reduced: Sequence[Pixels],
) -> list[Page]:
    """Return the directories of an Aperio slide in the order in which Aperio writes them.

    Args:
        slide_id: name of the slide, shown on the label and as the Filename.
        size_px: width and height of level 0.
        mpp: microns per pixel of level 0.
        base_tiles: the tiles of level 0 from `encode_tile`, row by row.
        reduced: the images of the further levels, finest first, each (H, W, 3) RGB.

    Returns:
        Level 0, thumbnail, the further levels, label, macro.
    """
    width, height = size_px
    base = f"{width}x{height} [0,0 {width}x{height}] ({TILE_PX}x{TILE_PX})"
    codec = f"JPEG/RGB Q={JPEG_QUALITY}"
    scan = f"AppMag = {OBJECTIVE}|MPP = {mpp:.4f}"
    pages = [_level(base, f" {codec}|{scan}|Filename = {slide_id}", size_px, mpp, base_tiles)]
    thumb_px = min(1024, width // 4)
    thumb_size = (thumb_px, max(1, round(height * thumb_px / width)))
    thumbnail: Pixels = cv2.resize(reduced[0], thumb_size, interpolation=cv2.INTER_AREA)
    thumb_note = f"{width}x{height} -> {thumb_size[0]}x{thumb_size[1]} - |{scan}"
    pages.append(_whole(thumbnail, thumb_note, mpp * width / thumb_px))
    for image in reduced:
        size = (image.shape[1], image.shape[0])
        tiles = [encode_tile(tile) for tile in _tiles(image)]
        note = f" -> {size[0]}x{size[1]} {codec}"
        pages.append(_level(base, note, size, mpp * width / size[0], tiles))
    label = _label(slide_id)
    macro = _macro(thumbnail, label)
    pages.append(_whole(label, "label 400x420", 50.0, 1))
    pages.append(_whole(macro, "macro 1280x431", 50.0, 9))
    return pages


Field = tuple[int, int, int, bytes]


def _numbers(tag: int, kind: int, *values: int) -> Field:
    return tag, kind, len(values), struct.pack(f"<{len(values)}{_PACK[kind]}", *values)


def _resolution(tag: int, mpp: float) -> Field:
    return tag, _RATIONAL, 1, struct.pack("<2I", round(1e8 / mpp), 10_000)


def _fields(page: Page, offsets: Sequence[int]) -> list[Field]:
    """Return the tags of a page, in rising order as TIFF requires."""
    text = page.description.encode("ascii") + b"\0"
    sizes = [len(chunk) for chunk in page.chunks]
    fields = [
        _numbers(254, _LONG, page.subfile),
        _numbers(256, _LONG, page.width_px),
        _numbers(257, _LONG, page.height_px),
        _numbers(258, _SHORT, 8, 8, 8),
        _numbers(259, _SHORT, 7),  # JPEG
        _numbers(262, _SHORT, 6),  # YCbCr
        (270, _ASCII, len(text), text),
        _numbers(277, _SHORT, 3),
        _resolution(282, page.mpp),
        _resolution(283, page.mpp),
        _numbers(284, _SHORT, 1),
        _numbers(296, _SHORT, 3),  # pixels per centimetre
        _numbers(530, _SHORT, 2, 2),  # 4:2:0
    ]
    if page.tables:
        fields += [
            _numbers(322, _LONG, TILE_PX),
            _numbers(323, _LONG, TILE_PX),
            _numbers(324, _LONG, *offsets),
            _numbers(325, _LONG, *sizes),
            (347, _BYTES, len(page.tables), page.tables),
        ]
    else:
        fields += [
            _numbers(273, _LONG, *offsets),
            _numbers(278, _LONG, page.height_px),
            _numbers(279, _LONG, *sizes),
        ]
    return sorted(fields)


def _append(stream: BinaryIO, payload: bytes) -> int:
    """Write a payload at the end, on an even offset as TIFF requires; return the offset."""
    at = stream.seek(0, 2)
    if at % 2:
        stream.write(b"\0")
        at += 1
    stream.write(payload)
    return at


def _directory(stream: BinaryIO, fields: Sequence[Field]) -> bytes:
    entries = b""
    for tag, kind, count, payload in fields:
        if len(payload) > 4:
            payload = struct.pack("<I", _append(stream, payload))
        entries += struct.pack("<HHI4s", tag, kind, count, payload.ljust(4, b"\0"))
    return struct.pack("<H", len(fields)) + entries + struct.pack("<I", 0)


def write_tiff(stream: BinaryIO, pages: Sequence[Page]) -> None:
    """Write pages as a classic little-endian TIFF.

    Args:
        stream: an empty seekable file opened for writing in binary.
        pages: the directories, in file order.
    """
    stream.write(struct.pack("<2sHI", b"II", 42, 0))
    link = 4  # where the offset of the next directory goes
    for page in pages:
        offsets = [_append(stream, chunk) for chunk in page.chunks]
        fields = _fields(page, offsets)
        at = _append(stream, _directory(stream, fields))
        stream.seek(link)
        stream.write(struct.pack("<I", at))
        link = at + 2 + 12 * len(fields)
