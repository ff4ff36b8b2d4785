"""A folder of inputs that are no good slides, or look as if they were none; built, not stored.

Each says which state it must end in and what its reason must say. The sound ones among them (odd
names, one level, JPEG 2000, tiles that are not stored) must be ready: a slide that is refused
without need is lost tissue, as one that is misread is false tissue.
"""

import io
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import openslide
import tifffile

from examples.slide_writer import TILE_PX, Page, encode_tile, shared_tables, write_tiff
from tests.conftest import REAL_SLIDE
from tests.worlds.slide_server import SlideServer

NO_SLIDE = "is not a slide format that openslide reads"
DAMAGED = "can't be read|can't be decoded|is damaged or cut off|can't be opened"
JPEG_2000_RGB, RGB = 33005, 2
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input of an ingest.

    Attributes:
        uri: what is given to the command.
        slide_id: what it is called in the lake.
        reason: pattern of the reason of its failure; None if it is a sound slide.
        vanishes: whether it is to be removed once the ingest knows of it.
    """

    uri: str
    slide_id: str
    reason: str | None
    vanishes: bool = False


def build(folder: Path, server: SlideServer) -> list[Input]:
    """Return all inputs, sound ones first; those at URLs are put into the server's files.

    Args:
        folder: an empty folder for the others.
        server: where the URLs lead.
    """
    real = REAL_SLIDE.read_bytes()
    with openslide.OpenSlide(REAL_SLIDE) as slide:
        pixels = np.asarray(slide.read_region((600, 900), 0, (768, 768)).convert("RGB"))
    makers = (_sound, _cut_off, _not_slides, _wrong_inside, _wrong_colours)
    inputs = [one for maker in makers for one in maker(folder, real, pixels)]
    inputs += [*_odd_places(folder, real), *_on_servers(server, real)]
    inputs.append(_duplicate(folder, real))
    return sorted(inputs, key=lambda one: one.reason is not None)


def _put(folder: Path, name: str, data: bytes, reason: str | None) -> Input:
    path = folder / name
    path.write_bytes(data)
    return Input(uri=str(path), slide_id=path.stem, reason=reason)


def _sound(folder: Path, real: bytes, pixels: Pixels) -> Iterator[Input]:
    yield _put(folder, "one level.svs", real, None)
    yield _put(folder, "Präparat 7 (HE) 切片 #3 [a].svs", real, None)
    yield _put(folder, f"{'long-' * 48}.svs", real, None)
    yield _put(folder, "a::b & 'c';$HOME.svs", real, None)
    yield _put(folder, "jpeg2000.svs", _jpeg_2000(pixels), None)
    # A tile of no bytes is what scanners write where they saw nothing: glass.
    yield _put(folder, "not-stored.svs", _patched(real, "TileByteCounts", _zeros(80, 160)), None)
    yield _tiff(folder, "not-tiled", None, pixels, tile=None)
    yield _tiff(folder, "deflated", None, pixels, compression="zlib")
    opaque = np.full(pixels.shape[:2], 255, np.uint8)
    yield _tiff(folder, "alpha", None, np.dstack([pixels, opaque]), extrasamples=["unassalpha"])


def _cut_off(folder: Path, real: bytes, _: Pixels) -> Iterator[Input]:
    for name, size in {
        "first-kB": 1000,
        "half": len(real) // 2,
        "nine-tenths": len(real) * 9 // 10,
        "but-a-kB": len(real) - 1000,
        "but-a-byte": len(real) - 1,
    }.items():
        yield _put(folder, f"cut-{name}.svs", real[:size], "is cut off: what it lists reaches to")
    yield _put(folder, "empty.svs", b"", "is empty: it is not a slide")


def _not_slides(folder: Path, _: bytes, pixels: Pixels) -> Iterator[Input]:
    photo = bytes(cv2.imencode(".jpg", pixels)[1])
    yield _put(folder, "text.svs", b"this is no slide\n" * 100, NO_SLIDE)
    yield _put(folder, "photo-named.svs", photo, "does not say its mpp, nor its objective")
    yield _put(folder, "photo.jpg", photo, "does not say its mpp, nor its objective")
    yield _put(folder, "header-alone.tiff", b"II*\0\x08\0\0\0", "is cut off")
    ring = b"II*\0\x08\0\0\0" + b"\0\0" + b"\x08\0\0\0"
    yield _put(folder, "ring.tiff", ring, "its directories of images lead in a circle")
    yield _put(folder, "noise.tiff", b"II*\0" + np.random.default_rng(0).bytes(5000), "is cut off")
    yield _put(folder, "no-index.mrxs", b"\xff\xd8\xff\xd9", "needs the folder no-index with Slid")


def _wrong_inside(folder: Path, real: bytes, pixels: Pixels) -> Iterator[Input]:
    def put(name: str, tag: str, change: Callable[[bytes], bytes], reason: str) -> Input:
        return _put(folder, f"{name}.svs", _patched(real, tag, change), reason)

    yield put("tables-garbled", "JPEGTables", lambda old: old[:2] + b"\x07" * len(old[2:]), DAMAGED)
    yield put("tables-short", "JPEGTables", lambda old: old[:100].ljust(len(old), b"\0"), DAMAGED)
    yield put("offsets-zero", "TileOffsets", _zeros(80, 160), DAMAGED)
    far = struct.pack("<I", 4_000_000_000) * 20
    yield put("offsets-far", "TileOffsets", lambda old: old[:80] + far + old[160:], "is cut off")
    with tifffile.TiffFile(REAL_SLIDE) as tiff:
        at, size = (list(numbers)[40] for numbers in (tiff.pages[0].dataoffsets,
                                                  tiff.pages[0].databytecounts))  # fmt: skip
    zeroed = real[:at] + bytes(size) + real[at + size :]
    yield _put(folder, "tile-zeroed.svs", zeroed, DAMAGED)
    middle = at + size // 2
    hit = real[:middle] + b"\xff\xc4" * 32 + real[middle + 64 :]
    yield _put(folder, "tile-hit.svs", hit, DAMAGED)
    yield from _wrong_claims(folder, pixels)


def _wrong_claims(folder: Path, pixels: Pixels) -> Iterator[Input]:
    page = Page(
        width_px=TILE_PX,
        height_px=TILE_PX,
        mpp=0.5,
        description="Aperio Image Library v12.0.15\r\n|AppMag = 20|MPP = 0.5000",
        chunks=[encode_tile(np.ascontiguousarray(pixels[:TILE_PX, :TILE_PX]))],
        tables=shared_tables(),
    )
    for name, side, reason in (
        ("huge", 1_500_000, "claims 1500000 x 1500000 px, which are 34339600 tiles .* lists 1"),
        ("beyond-huge", 2**31, "sides of 1 to 2000000 px are read"),
        ("no-pixels", 0, "can't be opened: Invalid TIFF"),
    ):
        path = folder / f"{name}.svs"
        with path.open("wb") as file:
            write_tiff(file, [replace(page, width_px=side, height_px=side)])
        yield Input(uri=str(path), slide_id=name, reason=reason)
    nothing: dict[str, Any] = {"resolution": None, "resolutionunit": None}
    yield _tiff(folder, "no-mpp", "does not say its mpp", pixels, **nothing)
    inch: dict[str, Any] = {"resolution": (72, 72), "resolutionunit": "INCH"}
    yield _tiff(folder, "72-dpi", r"says 352\.\d* mpp, outside 0.05 to 10", pixels, **inch)
    coarse: dict[str, Any] = {"resolution": (2500, 2500)}
    yield _tiff(folder, "coarse", "4 mpp, coarser than the 0.5 mpp asked", pixels, **coarse)
    yield _tiff(folder, "glass", "no tissue found", np.full_like(pixels, 243))


def _wrong_colours(folder: Path, _: bytes, pixels: Pixels) -> Iterator[Input]:
    grey = pixels.mean(axis=2).astype(np.uint8)
    wide = pixels.astype(np.uint16) * 256
    yield _tiff(folder, "grey", "is greyscale, perhaps fluorescence", grey, "minisblack")
    yield _tiff(folder, "grey-16", "has 16 bits per sample", wide[..., 0], "minisblack")
    yield _tiff(folder, "rgb-16", "has 16 bits per sample", wide)
    yield _tiff(folder, "float", "has 32 bits per sample", grey / np.float32(255), "minisblack")
    yield _tiff(folder, "bilevel", "has 1 bits per sample", grey > 128, "minisblack")
    yield _tiff(folder, "cmyk", "is CMYK", np.dstack([pixels, grey]), "separated")
    five = np.dstack([pixels, grey, grey])
    yield _tiff(folder, "five-channels", "has 5 channels", five, extrasamples=["unspecified"] * 2)
    # Three equal channels are colour to a file, and no stained tissue to the eye.
    yield _tiff(folder, "grey-as-rgb", "no tissue found", np.dstack([grey] * 3) // 4)


def _odd_places(folder: Path, real: bytes) -> Iterator[Input]:
    (folder / "directory.svs").mkdir()
    (folder / "dangling.svs").symlink_to(folder / "nowhere")
    (folder / "loop.svs").symlink_to(folder / "loop.svs")
    os.mkfifo(folder / "pipe.svs")
    for name, reason in {
        "directory": "is a folder, not a slide",
        "dangling": "does not exist",
        "never-there": "does not exist",
        "loop": "can't be read: Too many levels of symbolic links",
        "pipe": "is a pipe or device, not a slide",
        "x" * 300: "can't be read: File name too long",
    }.items():
        yield Input(uri=str(folder / f"{name}.svs"), slide_id=name, reason=reason)
    inside = folder / "text.svs" / "inside.svs"
    yield Input(uri=str(inside), slide_id="inside", reason="can't be read: Not a directory")
    no_text = os.fsencode(folder / "no-text-") + b"\xff.svs"
    Path(os.fsdecode(no_text)).write_bytes(real)
    yield Input(
        uri=os.fsdecode(no_text), slide_id="no-text-\\udcff", reason="a name that is not UTF-8"
    )
    yield replace(_put(folder, "removed.svs", real, "does not exist"), vanishes=True)
    if os.geteuid() != 0:  # root may read anything
        locked = _put(folder, "locked.svs", real, "can't be read: Permission denied")
        Path(locked.uri).chmod(0)
        yield locked


def _on_servers(server: SlideServer, real: bytes) -> Iterator[Input]:
    def at(name: str, reason: str | None) -> Input:
        return Input(uri=f"{server.url}/{name}.svs?key=hush", slide_id=name, reason=reason)

    server.files["/served.svs"] = real
    server.files["/served-text.svs"] = b"no slide"
    server.files["/withdrawn.svs"] = real
    server.status |= {"/forbidden.svs": 403, "/busy.svs": 503, "/broken.svs": 500}
    yield at("served", None)
    yield at("served-text", f"/served-text.svs {NO_SLIDE}")
    yield at("forbidden", r"access is denied \(403\)")
    yield at("absent", "/absent.svs does not exist")
    yield at("busy", r"the server is too busy \(503\)")
    yield at("broken", r"the server failed \(500\)")
    yield replace(at("withdrawn", "/withdrawn.svs does not exist"), vanishes=True)
    yield Input(uri="nosuch://x/y.svs", slide_id="y", reason="Protocol not known")


def _duplicate(folder: Path, real: bytes) -> Input:
    (folder / "again").mkdir()
    taken = r"the slide_id 'one level' is taken by another file of this run"
    return _put(folder / "again", "one level.svs", real, taken)


def remove(inputs: list[Input], server: SlideServer) -> None:
    """Remove those that vanish."""
    for one in inputs:
        if one.vanishes and "://" in one.uri:
            del server.files[f"/{one.slide_id}.svs"]
        elif one.vanishes:
            Path(one.uri).unlink()


# ---------------------------------------------------------------------- making them


def _tiff(
    folder: Path,
    name: str,
    reason: str | None,
    pixels: npt.NDArray[np.generic],
    photometric: str = "rgb",
    **options: object,
) -> Input:
    """An image as a generic tiled TIFF of 0.5 mpp, unless the options say otherwise."""
    usual: dict[str, Any] = {
        "tile": (256, 256),
        "resolution": (20_000, 20_000),
        "resolutionunit": "CENTIMETER",
    }
    if photometric == "rgb" and pixels.shape[2] > 3:
        usual["planarconfig"] = "contig"
    path = folder / f"{name}.tiff"
    tifffile.imwrite(path, pixels, photometric=photometric, **{**usual, **options})
    return Input(uri=str(path), slide_id=name, reason=reason)


def _zeros(start: int, end: int) -> Callable[[bytes], bytes]:
    return lambda old: old[:start] + bytes(end - start) + old[end:]


def _patched(data: bytes, tag: str, change: Callable[[bytes], bytes]) -> bytes:
    """The real slide with another value of a tag of its first page."""
    with tifffile.TiffFile(REAL_SLIDE) as tiff:
        tag_field = tiff.pages[0].tags[tag]
        at, size = tag_field.valueoffset, tag_field.valuebytecount
    value = change(data[at : at + size])
    assert len(value) == size
    return data[:at] + value + data[at + size :]


def _jpeg_2000(pixels: Pixels) -> bytes:
    """An Aperio slide of JPEG 2000 tiles in RGB."""
    height, width = pixels.shape[:2]
    chunks = []
    for y in range(0, height, TILE_PX):
        for x in range(0, width, TILE_PX):
            bgr = np.ascontiguousarray(pixels[y : y + TILE_PX, x : x + TILE_PX, ::-1])
            boxed = bytes(cv2.imencode(".jp2", bgr)[1])
            chunks.append(boxed[boxed.index(b"jp2c") + 4 :])
    text = f"Aperio Image Library v12.0.15\r\n{width}x{height} J2K|AppMag = 20|MPP = 0.5000"
    page = Page(width_px=width, height_px=height, mpp=0.5, description=text, chunks=chunks,
                tables=shared_tables())  # fmt: skip
    stream = io.BytesIO()
    write_tiff(stream, [page])
    data = bytearray(stream.getvalue())
    stream.seek(0)  # where tifffile takes the file to begin
    with tifffile.TiffFile(stream) as tiff:
        for tag, value in (("Compression", JPEG_2000_RGB), ("PhotometricInterpretation", RGB)):
            struct.pack_into("<H", data, tiff.pages[0].tags[tag].valueoffset, value)
    return bytes(data)


def copy_of(inputs: list[Input], folder: Path) -> list[str]:
    """The sound ones again, in the same order; local files at another place."""
    folder.mkdir()
    return [
        one.uri if "://" in one.uri else str(shutil.copy(one.uri, folder / Path(one.uri).name))
        for one in inputs
        if one.reason is None
    ]
