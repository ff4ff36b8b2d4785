"""An OME-TIFF: the levels of an Aperio-like slide as sub-directories of its first."""

import struct
from pathlib import Path

import tifffile

SUB_DIRECTORIES, DESCRIPTION = 330, 270
XML = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="{x}" '
    'SizeY="{y}" SizeC="3" SizeZ="1" SizeT="1" Interleaved="true" {mpp}>'
    '<Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData/></Pixels></Image></OME>'
)


def write_ome_tiff(
    path: Path, svs: Path, *, mpp: str = 'PhysicalSizeX="0.5" PhysicalSizeY="0.5"'
) -> Path:
    """A slide's pyramid as bfconvert and QuPath lay it out; labels are left out.

    Args:
        path: to be written.
        svs: a classic little-endian TIFF with a pyramid of tiled pages, no resolution needed.
        mpp: attributes of the XML.
    """
    data = bytearray(svs.read_bytes())
    with tifffile.TiffFile(svs) as file:
        pages = [page for page in file.pages if page.is_tiled]
        offsets = [page.offset for page in pages]
        size = (pages[0].imagewidth, pages[0].imagelength)
    for offset in offsets[1:]:  # as sub-directories they are found by their list alone
        count = struct.unpack_from("<H", data, offset)[0]
        struct.pack_into("<I", data, offset + 2 + 12 * count, 0)
    text = XML.format(x=size[0], y=size[1], mpp=mpp).encode() + b"\0"
    text_at = _append(data, text)
    list_at = _append(data, struct.pack(f"<{len(offsets) - 1}I", *offsets[1:]))
    count = struct.unpack_from("<H", data, offsets[0])[0]
    entries = {}
    for number in range(count):
        entry = bytes(data[offsets[0] + 2 + 12 * number :][:12])
        tag = struct.unpack_from("<H", entry)[0]
        if tag not in (282, 283, 296):  # the resolution: what says the mpp is the XML
            entries[tag] = entry
    entries[DESCRIPTION] = struct.pack("<HHII", DESCRIPTION, 2, len(text), text_at)
    entries[SUB_DIRECTORIES] = struct.pack("<HHII", SUB_DIRECTORIES, 4, len(offsets) - 1, list_at)
    body = b"".join(entries[tag] for tag in sorted(entries))
    first = _append(data, struct.pack("<H", len(entries)) + body + struct.pack("<I", 0))
    struct.pack_into("<I", data, 4, first)
    path.write_bytes(data)
    return path


def _append(data: bytearray, more: bytes) -> int:
    data.extend(b"\0" * (len(data) % 2))
    data.extend(more)
    return len(data) - len(more)
