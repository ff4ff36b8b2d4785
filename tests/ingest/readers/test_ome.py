"""OME-TIFFs: levels in sub-directories, which openslide does not see, and the mpp of their XML."""

from pathlib import Path

import fsspec
import numpy as np
import pytest
import tifffile
from openslide import OpenSlide

from featurestore import LakeConfig, create_lake
from ingest.cut import cut_slide
from ingest.errors import SlideError
from ingest.grid import plan_grids
from ingest.readers.tiff.jpeg_tiff import JpegTiff
from ingest.readers.tiff.ome import ome_mpp
from ingest.readers.tiff.tiff_reader import TiffReader
from ingest.remote.local_copy import local_slide
from ingest.select.sources import fingerprint
from tests.conftest import REAL_SLIDE
from tests.worlds.ome_slide import write_ome_tiff
from tests.worlds.wide_slide import write_wide_slide


@pytest.fixture(scope="module")
def svs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wide_slide(tmp_path_factory.mktemp("ome") / "a.svs", columns=2, rows=1)


@pytest.fixture(scope="module")
def ome(svs: Path) -> Path:
    return write_ome_tiff(svs.with_name("a.ome.tif"), svs)


def test_its_levels_are_read_natively(svs: Path, ome: Path) -> None:
    with OpenSlide(ome) as slide:
        assert slide.level_count == 1
    with tifffile.TiffFile(ome) as file:
        assert file.is_ome
        assert len(file.series[0].levels) == 3
    with TiffReader(str(ome)) as ours, TiffReader(str(svs)) as same:
        assert (ours.mpp, ours.mpp_source, ours.levels) == (0.5, "file", 3)
        for grid in plan_grids(ours.size_px, 0.5, 256, {0.5: 1, 1.0: 2, 2.0: 4, 8.0: 16}).values():
            for y, x in ((0, 0), (grid.height - 1, grid.width - 1)):
                np.testing.assert_array_equal(ours.tile(grid, y, x), same.tile(grid, y, x))
            assert ours.stored_level(grid) == same.stored_level(grid)
        assert (ours.name, ours.fallback) == ("tiff", None)
        expected, scale = same.overview(16.0)
        pixels, same_scale = ours.overview(16.0)
        assert same_scale == scale
        np.testing.assert_array_equal(pixels, expected)


def test_it_becomes_the_same_tiles(tmp_path: Path, svs: Path, ome: Path) -> None:
    config = LakeConfig(tile_px=256, mpps=(0.5, 2.0), passthrough=(0.5, 2.0))
    lake = create_lake(tmp_path / "lake", config)
    slides = []
    for number, slide in enumerate((svs, ome)):
        size, mark = fingerprint(str(slide))
        row = {"slide": number, "slide_id": slide.name, "uri": str(slide), "bytes": size}
        slides.append(cut_slide(lake.store, config, {**row, "fingerprint": mark}))
    one, other = slides
    assert {cut.row["reader"] for cut in slides} == {"tiff"}
    for mpp in config.mpps:
        tables = [cut.grids[mpp].tiles.drop(["tile_id", "slide", "slide_id"]) for cut in slides]
        assert tables[0].num_rows
        assert tables[0].equals(tables[1])
    assert one.row["thumbnail"] == other.row["thumbnail"]


def test_a_level_that_is_another_image_is_left_out(tmp_path: Path, svs: Path) -> None:
    data = write_ome_tiff(tmp_path / "a.ome.tif", svs).read_bytes()
    level = JpegTiff(str(tmp_path / "a.ome.tif")).levels[1]
    # The tiles of the level at a fourth, in another order: of the same image, at other places.
    swapped = bytearray(data)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        at = file.pages[0].pages[0].tags["TileOffsets"].valueoffset
        sizes = file.pages[0].pages[0].tags["TileByteCounts"].valueoffset
    for start in (at, sizes):
        words = np.frombuffer(data, "<u4", len(level.offsets), start)
        swapped[start : start + 4 * len(words)] = words[::-1].tobytes()
    (tmp_path / "b.ome.tif").write_bytes(swapped)
    with TiffReader(str(tmp_path / "b.ome.tif")) as slide:
        assert [slide.is_fit(level) for level in range(3)] == [True, False, True]
        (note,) = slide.notes
        assert "level 1 is not used: it differs from level 0 by" in note


@pytest.mark.parametrize(
    ("attributes", "mpp"),
    [
        ('PhysicalSizeX="0.25" PhysicalSizeY="0.252"', 0.250998),
        ('PhysicalSizeX="250" PhysicalSizeXUnit="nm" PhysicalSizeY="0.25"', 0.25),
        ('PhysicalSizeX="0.25"', None),
        ('PhysicalSizeX="1" PhysicalSizeY="1" PhysicalSizeXUnit="pixel"', None),
        ('PhysicalSizeX="a" PhysicalSizeY="1"', None),
        ("", None),
    ],
)
def test_mpp_of_the_xml(tmp_path: Path, svs: Path, attributes: str, mpp: float | None) -> None:
    path = write_ome_tiff(tmp_path / "a.ome.tif", svs, mpp=attributes)
    stated = ome_mpp(str(path))
    assert (stated and stated.mean) == (None if mpp is None else pytest.approx(mpp, rel=1e-4))
    if mpp is None:
        with pytest.raises(SlideError, match="does not say its mpp"):
            TiffReader(str(path))
    assert ome_mpp(str(REAL_SLIDE)) is None
    assert ome_mpp(__file__) is None


def test_it_travels_whole(ome: Path) -> None:
    """Its coarse levels are trusted for what they have in common with level 0."""
    with fsspec.open("memory://ome/a.ome.tif", "wb") as file:
        file.write(ome.read_bytes())
    with local_slide("memory://ome/a.ome.tif", mpps=(2.0, 16.0)) as local:
        assert local.bytes_read == ome.stat().st_size
        with TiffReader(local.path) as slide:
            assert slide.levels == 3
