"""Pictures, strip TIFFs, other codecs and several images in a file: read, or truly refused."""

import io
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from examples.slide_writer import TILE_PX, Page, encode_tile, shared_tables, write_tiff
from featurestore import LakeConfig
from ingest.errors import InputError, SlideError
from ingest.readers.open_slide import open_slide
from ingest.readers.slide_reader import ReadOptions
from ingest.remote.local_copy import local_slide
from ingest.select.ingest_plan import plan_ingest
from ingest.select.sources import fingerprint, resolve
from ingest.tissue.own_segmenter import read_segmenter
from tests.worlds.planted_levels import Pixels, real_pixels

HALF = ReadOptions(mpp=0.5)
TILED: dict[str, Any] = {
    "photometric": "rgb",
    "tile": (256, 256),
    "resolution": (20_000, 20_000),
    "resolutionunit": "CENTIMETER",
}


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return np.ascontiguousarray(real_pixels()[900:1500, 500:1200])


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tiff", "lzw.tiff", "jpeg.tiff"])
def test_picture_with_an_mpp_is_a_slide(tmp_path: Path, pixels: Pixels, name: str) -> None:
    options: dict[str, Any] = {
        "a.jpg": {"quality": 95},
        "lzw.tiff": {"compression": "tiff_lzw"},
        "jpeg.tiff": {"compression": "jpeg", "quality": 95},
    }
    path = tmp_path / name
    Image.fromarray(pixels).save(path, **options.get(name, {}))
    with open_slide(str(path), HALF) as slide:
        assert (slide.name, slide.mpp, slide.mpp_source, slide.levels) == (
            "pillow", 0.5, "given", 1,
        )  # fmt: skip
        assert slide.size_px == (700, 600)
        region = slide.region(0, -8, 0, 708, 600)
        assert (region[:, :8] == 255).all()
        assert np.abs(region[:, 8:].astype(int) - pixels).mean() < (6 if "j" in name else 0.01)
        overview, scale = slide.overview(16.0)
        assert (overview.shape, scale) == ((19, 22, 3), 32)
    with pytest.raises(SlideError, match=r"does not say its mpp|says .* mpp, outside"):
        open_slide(str(path))


def test_strip_tiff_that_says_its_mpp_needs_none(tmp_path: Path, pixels: Pixels) -> None:
    path = tmp_path / "a.tiff"
    tifffile.imwrite(path, pixels, **{**TILED, "tile": None, "rowsperstrip": 16})
    with local_slide(str(path)) as local, open_slide(local.path) as slide:
        assert (slide.mpp, slide.mpp_source, slide.name) == (0.5, "file", "pillow")


def test_picture_is_turned_upright_and_laid_on_white(tmp_path: Path, pixels: Pixels) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    with open_slide(str(tmp_path / "a.png"), HALF) as slide:
        assert slide.size_px == (600, 700)
        np.testing.assert_array_equal(slide.region(0, 0, 0, 600, 700), np.rot90(pixels, -1))
        assert slide.notes == ["it was turned upright, as its orientation tag says"]
    clear = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    clear[:100, :, 3] = 0
    Image.fromarray(clear).save(tmp_path / "b.png")
    with open_slide(str(tmp_path / "b.png"), HALF) as slide:
        assert (slide.region(0, 0, 0, 700, 100) == 255).all()
        np.testing.assert_array_equal(slide.region(0, 0, 100, 700, 500), pixels[100:])


def test_other_pictures_are_refused_for_what_they_are(tmp_path: Path, pixels: Pixels) -> None:
    grey = pixels[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    cv2.imwrite(str(tmp_path / "deep.png"), pixels.astype(np.uint16) * 256)
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "cmyk.jpg")
    (tmp_path / "short.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(50))
    for name, reason in {
        "grey.png": "is a picture of mode L; an 8-bit colour image",
        "deep.png": "is a picture of mode RGB; an 8-bit colour image",
        "cmyk.jpg": "is a picture of mode CMYK",
        "short.jpg": "can't be decoded as a picture",
    }.items():
        with pytest.raises(SlideError, match=reason):
            open_slide(str(tmp_path / name), HALF)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.svs", b"", "is empty"),
        ("a.svs", b"text of something", "is not a slide format that openslide reads"),
        ("a.zip", b"PK\x03\x04" + bytes(50), "is a ZIP archive; unpack it"),
        ("a.svs", b"<!DOCTYPE html><html>", "is a web page"),
        ("a.svs", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        ("a.mrxs", b"\xff\xd8\xff\xd9", "needs the folder a with Slidedat.ini"),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    ],
)
def test_reason_for_refusal_is_the_true_one(
    tmp_path: Path, name: str, data: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SlideError, match=reason):
        open_slide(str(tmp_path / name))


def with_codec(path: Path, pixels: Pixels, codec: int, tiles: list[bytes] | None = None) -> str:
    """A tiled TIFF whose tag names another compression; its tiles are of it, or are not decoded."""
    tifffile.imwrite(path, pixels, **TILED)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        tags = {name: page.tags[name].valueoffset for name in ("Compression", "TileOffsets")}
        counts = page.tags["TileByteCounts"].valueoffset
    data[tags["Compression"] : tags["Compression"] + 2] = codec.to_bytes(2, "little")
    for number, tile in enumerate(tiles or []):
        for start, value in ((tags["TileOffsets"], len(data)), (counts, len(tile))):
            data[start + 4 * number : start + 4 * number + 4] = value.to_bytes(4, "little")
        data += tile
    path.write_bytes(data)
    return str(path)


def test_webp_tiles_are_read_and_jpeg_xl_is_named(tmp_path: Path, pixels: Pixels) -> None:
    tiles = []
    for y in range(0, 600, 256):
        for x in range(0, 700, 256):
            tile = np.full((256, 256, 3), 255, np.uint8)
            part = pixels[y : y + 256, x : x + 256]
            tile[: part.shape[0], : part.shape[1]] = part
            stream = io.BytesIO()
            Image.fromarray(tile).save(stream, "WEBP", lossless=True)
            tiles.append(stream.getvalue())
    with open_slide(with_codec(tmp_path / "a.tiff", pixels, 50001, tiles)) as slide:
        np.testing.assert_array_equal(slide.region(0, 0, 0, 700, 600), pixels)
    path = with_codec(tmp_path / "b.tiff", pixels, 50002)
    with pytest.raises(SlideError, match="is compressed as JPEG XL, which is not decoded here"):
        open_slide(path)


def jpeg_page(image: Pixels) -> Page:
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, -height % TILE_PX), (0, -width % TILE_PX), (0, 0)), mode="edge")
    places = [(y, x) for y in range(0, height, TILE_PX) for x in range(0, width, TILE_PX)]
    parts = [np.ascontiguousarray(padded[y : y + TILE_PX, x : x + TILE_PX]) for y, x in places]
    return Page(
        width_px=width,
        height_px=height,
        mpp=0.5,
        description="",
        chunks=[encode_tile(part) for part in parts],
        tables=shared_tables(),
    )


@pytest.mark.parametrize("jpeg", [True, False])
def test_largest_image_is_taken_and_others_have_numbers(
    tmp_path: Path, pixels: Pixels, *, jpeg: bool
) -> None:
    images = [pixels[:300, :200], pixels, pixels[::-1].copy()]  # a label, and two planes
    path = tmp_path / "a.tiff"
    if jpeg:
        with path.open("wb") as file:
            write_tiff(file, [jpeg_page(np.ascontiguousarray(image)) for image in images])
    else:
        with tifffile.TiffWriter(path) as tiff:
            for image in images:
                tiff.write(image, compression="zlib", metadata=None, **TILED)
    near = 6 if jpeg else 0.01
    with local_slide(str(path)) as local, open_slide(local.path, image=local.image) as slide:
        assert np.abs(slide.region(0, 0, 0, 700, 600).astype(int) - pixels).mean() < near
        (note,) = slide.notes
        assert note.startswith("it holds 2 other images (#1: 200 x 300 px, #3: 700 x 600 px); ima")
        assert slide.name == ("tiff" if jpeg else "pillow")
    with local_slide(f"{path}#3") as local, open_slide(local.path, image=local.image) as slide:
        assert np.abs(slide.region(0, 0, 0, 700, 600).astype(int) - images[2]).mean() < near
        assert slide.mpp == pytest.approx(0.5)
    with pytest.raises(SlideError, match=r"has no image #4; it has 3 \(#1: 200 x 300 px"):
        open_slide(str(path), image=4)
    sources = resolve([str(path), f"{path}#3"])
    assert [source.slide_id for source in sources] == ["a", "a#3"]
    assert fingerprint(f"{path}#3")[1] == fingerprint(str(path))[1] + "#3"


def test_section_nearly_as_large_is_an_image_and_no_level(tmp_path: Path, pixels: Pixels) -> None:
    path = tmp_path / "two.tiff"
    second = np.ascontiguousarray(pixels[::-1][:540, :630])  # of the same shape
    with tifffile.TiffWriter(path) as tiff:
        for image in (pixels, second, second[::2, ::2]):
            tiff.write(image, compression="zlib", metadata=None, **TILED)
    with open_slide(str(path)) as slide:
        assert slide.notes[0].startswith("it holds 1 other image (#2: 630 x 540 px)")
    with open_slide(str(path), image=2) as slide:
        assert np.array_equal(slide.region(0, 0, 0, 630, 540), second)


def test_pictures_of_a_folder_are_taken_when_they_are_named(tmp_path: Path) -> None:
    Image.new("RGB", (300, 300)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"no slides found in .*\.tiff.* are taken; name .*png"):
        resolve([str(tmp_path)])
    assert [source.slide_id for source in resolve([str(tmp_path / "*.png")])] == ["a"]


WRITES_ITS_PROCESS = """
import os
from pathlib import Path
import numpy as np
from ingest.tissue.own_segmenter import Segmenter

SEGMENTER = Segmenter(name="all", mpp=16.0)

def build():
    def segment(overview):
        Path(PLACE).write_text(str(os.getpid()))
        return np.ones(overview.shape[:2], bool)
    return segment
"""


def test_plan_looks_in_a_process_of_its_own(tmp_path: Path) -> None:
    """The last block of 2049 px at 16 mpp is one pixel, which is a view that can't be written."""
    tissue = real_pixels()[:2048, :2048]
    wide = np.pad(tissue, ((0, 1), (0, 1), (0, 0)), mode="edge")
    path = tmp_path / "2049.tiff"
    tifffile.imwrite(path, wide, compression="zlib", compressionargs={"level": 1}, **TILED)
    (tmp_path / "text.svs").write_bytes(b"no slide")
    (tmp_path / "noise.tiff").write_bytes(path.read_bytes()[:9000])
    rows: list[dict[str, Any]] = []
    for name in ("2049.tiff", "text.svs", "noise.tiff"):
        size, mark = fingerprint(str(tmp_path / name))
        row = {"slide_id": name, "uri": str(tmp_path / name), "bytes": size, "fingerprint": mark}
        rows.append(row)
    (tmp_path / "own.py").write_text(f"PLACE = {str(tmp_path / 'pid')!r}\n{WRITES_ITS_PROCESS}")
    rows[0]["tissue_by"] = read_segmenter(str(tmp_path / "own.py"))
    plan = plan_ingest(rows, LakeConfig(tile_px=256, mpps=(0.5,)), cores=1)
    assert [row["slide"] for row in plan.failed] == ["text.svs", "noise.tiff"]
    assert (plan.slides, plan.sampled) == (3, 3)
    assert plan.tiles["0.5"] > 20
    assert int((tmp_path / "pid").read_text()) != os.getpid()


def test_one_pixel_is_read(tmp_path: Path, pixels: Pixels) -> None:
    path = tmp_path / "a.tiff"
    tifffile.imwrite(path, pixels, compression="zlib", **TILED)
    with open_slide(str(path)) as slide:
        assert slide.region(0, 699, 599, 1, 1).tolist() == [[pixels[599, 699].tolist()]]
        assert slide.region(0, 700, 600, 1, 1).tolist() == [[[255, 255, 255]]]
