"""A DICOM whole-slide series: a file a level, a label and an overview; written by hand."""

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from examples.slide_writer import encode_jpeg

Pixels = npt.NDArray[np.uint8]
WSI, JPEG_BASELINE = "1.2.840.10008.5.1.4.1.1.77.1.6", "1.2.840.10008.1.2.4.50"
LONG = {"OB", "OW", "SQ", "UN", "UT"}
TILE_PX = 256


def element(tag: int, vr: str, value: bytes | str | list[int] | float) -> bytes:
    """An element, explicit VR, little endian."""
    if isinstance(value, str):
        value = value.encode()
    elif isinstance(value, float):
        value = struct.pack("<f", value)
    elif isinstance(value, list):
        value = b"".join(struct.pack({"US": "<H", "UL": "<I"}[vr], one) for one in value)
    value += (b"\0" if vr in {"UI", "OB"} else b" ") * (len(value) % 2)
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode())
    size = struct.pack("<xxI", len(value)) if vr in LONG else struct.pack("<H", len(value))
    return head + size + value


def sequence(tag: int, *items: bytes) -> bytes:
    """A sequence of undefined length, as many writers make them."""
    body = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items)
    head = struct.pack("<HH2sxxI", tag >> 16, tag & 0xFFFF, b"SQ", 0xFFFFFFFF)
    return head + body + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def write_instance(
    path: Path, image: Pixels, *, series: str, number: int, kind: str = "VOLUME", mpp: float = 0.5
) -> Path:
    """Write one instance of a series: a level in tiles, or a label or overview in one piece."""
    uid = f"{series}.{number}"
    height, width = image.shape[:2]
    side = (TILE_PX, TILE_PX) if kind == "VOLUME" else (height, width)
    frames = _frames(image, side)
    meta = element(0x00020001, "OB", b"\0\1") + element(0x00020002, "UI", WSI)
    meta += element(0x00020003, "UI", uid) + element(0x00020010, "UI", JPEG_BASELINE)
    meta += element(0x00020012, "UI", "1.2.3")
    spacing = "\\".join([f"{mpp / 1000:.8f}"] * 2)
    measures = element(0x00180050, "DS", "0.001") + element(0x00280030, "DS", spacing)
    path_item = element(0x00480112, "DS", "20") + element(0x00480106, "SH", "1")
    data = (
        element(0x00080008, "CS", f"ORIGINAL\\PRIMARY\\{kind}\\NONE")
        + element(0x00080016, "UI", WSI)
        + element(0x00080018, "UI", uid)
        + element(0x00080060, "CS", "SM")
        + sequence(0x00080110, element(0x00080102, "SH", "DCM"))
        + element(0x0020000D, "UI", "1.2.3.4")
        + element(0x0020000E, "UI", series)
        + element(0x00200013, "IS", str(number))
        + element(0x00200052, "UI", "1.2.3.5")
        + element(0x00209311, "CS", "TILED_FULL")
        + element(0x00280002, "US", [3])
        + element(0x00280004, "CS", "YBR_FULL_422")
        + element(0x00280006, "US", [0])
        + element(0x00280008, "IS", str(len(frames)))
        + element(0x00280010, "US", [side[0]])
        + element(0x00280011, "US", [side[1]])
        + element(0x00280100, "US", [8])
        + element(0x00280101, "US", [8])
        + element(0x00280102, "US", [7])
        + element(0x00280103, "US", [0])
        + element(0x00480006, "UL", [width])
        + element(0x00480007, "UL", [height])
        + sequence(0x00480105, path_item)
        + element(0x00480302, "UL", [1])
        + element(0x00480303, "UL", [1])
        + sequence(0x52009229, sequence(0x00289110, measures))
    )
    offsets, at = [], 0
    items = []
    for frame in frames:
        offsets.append(at)
        padded = frame + b"\0" * (len(frame) % 2)
        items.append(struct.pack("<HHI", 0xFFFE, 0xE000, len(padded)) + padded)
        at += len(items[-1])
    table = struct.pack(f"<{len(offsets)}I", *offsets)
    pixels = struct.pack("<HH2sxxI", 0x7FE0, 0x0010, b"OB", 0xFFFFFFFF)
    pixels += struct.pack("<HHI", 0xFFFE, 0xE000, len(table)) + table + b"".join(items)
    pixels += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    meta = element(0x00020000, "UL", [len(meta)]) + meta
    path.write_bytes(bytes(128) + b"DICM" + meta + data + pixels)
    return path


def _frames(image: Pixels, side: tuple[int, int]) -> list[bytes]:
    down, across = side
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, -height % down), (0, -width % across), (0, 0)), mode="edge")
    return [
        encode_jpeg(padded[y : y + down, x : x + across])
        for y in range(0, height, down)
        for x in range(0, width, across)
    ]
