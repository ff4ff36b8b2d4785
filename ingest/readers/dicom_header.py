"""The few facts of a DICOM file's header that distinguish levels from a label or a macro.

A header is read as far as the given bytes reach, explicit and implicit VR, little endian: what
whole-slide files are written in. A file that is parsed no further than some tag lacks those after.
"""

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

PREFIX = 128  # bytes before the mark
MARK = b"DICM"
IMPLICIT = "1.2.840.10008.1.2"
LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
TRANSFER_SYNTAX, IMAGE_TYPE, SERIES = 0x00020010, 0x00080008, 0x0020000E
COLUMNS, ROWS, PIXELS = 0x00480006, 0x00480007, 0x7FE00010


@dataclass(frozen=True, kw_only=True)
class DicomHeader:
    """The facts in the header of a DICOM file.

    Attributes:
        series: UID of the file's series; empty if it has none.
        image_type: values of the image type, as `("DERIVED", "PRIMARY", "VOLUME", "NONE")`.
        width_px: width of the whole level; 0 if the header has none.
        height_px: height of the whole level.
    """

    series: str
    image_type: tuple[str, ...]
    width_px: int
    height_px: int

    @property
    def is_volume(self) -> bool:
        """Whether the file is a level of a slide, and no label, overview or thumbnail."""
        return "VOLUME" in self.image_type

    @property
    def pixels(self) -> int:
        """Return the number of pixels of the level."""
        return self.width_px * self.height_px


def read_header(head: bytes) -> DicomHeader | None:
    """Return the header of a DICOM file from its first bytes; None for other files.

    Args:
        head: first bytes of the file; 64 KiB hold all values of the header.
    """
    if head[PREFIX : PREFIX + 4] != MARK:
        return None
    values: dict[int, bytes] = {}
    # Where the bytes end within an element, what came before it is there.
    with contextlib.suppress(struct.error, IndexError):
        values.update(_elements(head))
    kinds = _text(values.get(IMAGE_TYPE, b"")).split("\\")
    return DicomHeader(
        series=_text(values.get(SERIES, b"")),
        image_type=tuple(kind.strip() for kind in kinds),
        width_px=_number(values.get(COLUMNS, b"")),
        height_px=_number(values.get(ROWS, b"")),
    )


def _elements(header_bytes: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the elements of the data set itself; elements in sequences are left out."""
    at, explicit = PREFIX + 4, True
    while at + 8 <= len(header_bytes):
        group = struct.unpack_from("<H", header_bytes, at)[0]
        tag, start, length = _element(header_bytes, at, explicit=explicit or group == 2)
        if tag >= PIXELS:
            return
        if length == UNDEFINED:
            at = _sequence_end(header_bytes, start, explicit=explicit)
            continue
        content = header_bytes[start : start + length]
        if tag == TRANSFER_SYNTAX:
            explicit = _text(content) != IMPLICIT
        yield tag, content
        at = start + length


def _element(header_bytes: bytes, at: int, *, explicit: bool) -> tuple[int, int, int]:
    """Return the tag of an element, where its value begins, and the value's length."""
    group, element = struct.unpack_from("<HH", header_bytes, at)
    tag = group << 16 | element
    if group == 0xFFFE or not explicit:
        return tag, at + 8, struct.unpack_from("<I", header_bytes, at + 4)[0]
    if header_bytes[at + 4 : at + 6] in LONG:
        return tag, at + 12, struct.unpack_from("<I", header_bytes, at + 8)[0]
    return tag, at + 8, struct.unpack_from("<H", header_bytes, at + 6)[0]


def _sequence_end(header_bytes: bytes, at: int, *, explicit: bool) -> int:
    """Return the end of a sequence of undefined length, after a walk through its items."""
    depth = [SEQUENCE_END]
    while depth:
        tag, start, length = _element(header_bytes, at, explicit=explicit)
        if tag in (SEQUENCE_END, ITEM_END):
            depth.pop()
            at = start
        elif length == UNDEFINED:
            depth.append(ITEM_END if tag == ITEM else SEQUENCE_END)
            at = start
        else:
            at = start + length
    return at


def _text(raw_text: bytes) -> str:
    return raw_text.decode("ascii", "replace").rstrip("\0 ")


def _number(raw_number: bytes) -> int:
    return int(struct.unpack("<I", raw_number)[0]) if len(raw_number) == 4 else 0
