"""The native reader gives openslide's pixels, or leaves the file to openslide and says why."""

from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import tifffile

from ingest.errors import SlideError
from ingest.grid import plan_grids
from ingest.readers.openslide_reader import OpenSlideReader
from ingest.readers.tiff.jpeg_tiff import JpegTiff, NotNativeError
from ingest.readers.tiff.tiff_reader import TiffReader
from tests.conftest import REAL_SLIDE


def tiles_equal(path: Path, mpps: dict[float, int], tile_px: int = 256) -> None:
    """Check that tiles are openslide's: exactly those of stored levels, nearly the reduced ones."""
    with TiffReader(str(path)) as ours, OpenSlideReader(str(path)) as reference:
        for grid in plan_grids(ours.size_px, ours.mpp, tile_px, mpps).values():
            stored = grid.side_px / tile_px in ours._scales
            for y in range(grid.height):
                for x in range(grid.width):
                    tile, other = ours.tile(grid, y, x), reference.tile(grid, y, x)
                    if stored:
                        np.testing.assert_array_equal(tile, other)
                    assert np.abs(tile.astype(int) - other).mean() < 1.5
        (picture, scale), (expected, same) = ours.overview(16), reference.overview(16)
        assert picture.shape == expected.shape
        assert scale == same
        assert np.abs(picture.astype(int) - expected).mean() < 1.5
        assert (ours.name, ours.fallback) == ("tiff", None)


@pytest.mark.parametrize("tile_px", [240, 256, 224])
def test_real_rgb_slide_has_the_same_pixels(tile_px: int) -> None:
    tiles_equal(REAL_SLIDE, {0.5: 1, 1.0: 2, 2.0: 4}, tile_px)


def test_pyramids_have_the_same_pixels(cohort: Path) -> None:
    for path in sorted((cohort.parent / "slides").glob("*.svs"))[:2]:
        tiles_equal(path, {0.5: 1, 1.0: 2, 2.0: 4})


def test_stored_jpegs_are_right_for_any_decoder() -> None:
    """Real Aperio tiles are RGB JPEGs without a word of it: alone, they decode to wrong colours."""
    tiff = JpegTiff(str(REAL_SLIDE))
    with OpenSlideReader(str(REAL_SLIDE)) as reference:
        ours = simplejpeg.decode_jpeg(tiff.jpeg(0, 12), colorspace="RGB")
        y, x = divmod(12, tiff.levels[0].columns)
        np.testing.assert_array_equal(ours, reference.region(0, x * 240, y * 240, 240, 240))
    tiff.close()


def write(path: Path, **options: object) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (600, 520, 3)).astype(np.uint8)
    tifffile.imwrite(
        path,
        pixels,
        tile=(256, 256),
        photometric="rgb",
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
        **options,
    )
    return path


def test_other_compressions_are_left_to_openslide(tmp_path: Path) -> None:
    with TiffReader(str(write(tmp_path / "a.tiff", compression="zlib"))) as slide:
        grid = plan_grids(slide.size_px, slide.mpp, 256, {0.5: 1})[0.5]
        assert slide.tile(grid, 0, 0).shape == (256, 256, 3)
        assert slide.name == "openslide"
        assert slide.fallback is not None
        assert "not 8-bit colour JPEGs (compression 8)" in slide.fallback


def test_what_is_no_tiff_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.svs").write_bytes(b"II*\0 and then nothing of use")
    with pytest.raises(NotNativeError):
        JpegTiff(str(tmp_path / "a.svs"))
    with pytest.raises(SlideError, match="not a slide format"):
        TiffReader(str(tmp_path / "a.svs"))


def damaged(path: Path, number: int, jpeg: bytes) -> Path:
    """A copy of the real slide with other bytes at the place of one stored tile."""
    tiff = JpegTiff(str(REAL_SLIDE))
    level = tiff.levels[0]
    data = bytearray(REAL_SLIDE.read_bytes())
    at, size = level.offsets[number], level.sizes[number]
    data[at : at + size] = jpeg[:size].ljust(size, b"\0")
    tiff.close()
    path.write_bytes(bytes(data))
    return path


def test_zeroed_tile_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = damaged(tmp_path / "zero.svs", 30, b"\0")
    with TiffReader(str(path)) as slide:
        grid = plan_grids(slide.size_px, slide.mpp, 240, {0.5: 1})[0.5]
        y, x = divmod(30, grid.width)
        with pytest.raises(SlideError, match="tile 30 of level 0 is damaged"):
            slide.tile(grid, y, x)
        assert slide.tile(grid, 0, 0).shape == (240, 240, 3)


def test_level_that_differs_from_openslide_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A decoder that is off by one in one place, as fast inexact ones are.
    decode = simplejpeg.decode_jpeg

    def inexact(data: bytes, colorspace: str) -> np.typing.NDArray[np.uint8]:
        pixels: np.typing.NDArray[np.uint8] = decode(data, colorspace=colorspace)
        pixels[5, 5, 0] ^= 1
        return pixels

    monkeypatch.setattr("ingest.readers.tiff.jpeg_tiff.simplejpeg.decode_jpeg", inexact)
    with TiffReader(str(REAL_SLIDE)) as slide, OpenSlideReader(str(REAL_SLIDE)) as reference:
        grid = plan_grids(slide.size_px, slide.mpp, 256, {0.5: 1})[0.5]
        np.testing.assert_array_equal(slide.tile(grid, 1, 1), reference.tile(grid, 1, 1))
        assert slide.name == "openslide"
        assert "differs from openslide's by 1" in (slide.fallback or "")
