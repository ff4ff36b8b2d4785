"""What a slide says of itself: whose mpp counts, colours, orientation, and what is odd about it."""

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import ImageCms

from featurestore import LakeConfig, create_lake, open_lake, verify
from ingest.cut import cut_slide
from ingest.errors import SlideError
from ingest.pages.contact_sheet import write_contact_sheet
from ingest.readers.mpp import StatedMpp, choose_mpp, given_mpp
from ingest.readers.open_slide import open_slide
from ingest.readers.slide_reader import ReadOptions
from ingest.readers.tiff.ome import ome_mpp
from ingest.select.cut_settings import CutSettings, differences
from ingest.select.sources import fingerprint
from tests.conftest import REAL_SLIDE, ROOT
from tests.worlds.planted_levels import Pixels, real_pixels, reduced, write_slide

PER_CM = 20_000  # pixels: 0.5 mpp
OME = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="512" '
    'SizeY="512" SizeC="3" SizeZ="1" SizeT="1" Interleaved="true" {mpp}>'
    '<Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData/></Pixels></Image></OME>'
)


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return np.ascontiguousarray(real_pixels()[900:1412, 600:1112])


def write(path: Path, pixels: Pixels, **options: Any) -> str:  # noqa: ANN401 - tifffile's
    usual: dict[str, Any] = {
        "photometric": "rgb",
        "tile": (256, 256),
        "resolution": (PER_CM, PER_CM),
        "resolutionunit": "CENTIMETER",
        "metadata": None,
    }
    tifffile.imwrite(path, pixels, **{**usual, **options})
    return str(path)


def sizes(x: str, y: str, unit: str | None = None) -> str:
    units = "" if unit is None else f'PhysicalSizeXUnit="{unit}" PhysicalSizeYUnit="{unit}"'
    return OME.format(mpp=f'PhysicalSizeX="{x}" PhysicalSizeY="{y}" {units}')


@pytest.mark.parametrize(
    ("unit", "value"),
    [
        (None, "0.25"),
        ("\u00b5m", "0.25"),
        ("\u03bcm", "0.25"),
        ("um", "0.25"),
        ("micrometer", "0.25"),
        ("Micron", "0.25"),
        ("nm", "250"),
        ("mm", "0.00025"),
        ("cm", "0.000025"),
    ],
)
def test_xml_beats_tags_in_every_unit(
    tmp_path: Path, pixels: Pixels, unit: str | None, value: str
) -> None:
    path = write(tmp_path / "a.ome.tif", pixels, description=sizes(value, value, unit).encode())
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.25)
        assert (slide.mpp_source, slide.notes) == ("file", [])


def test_impossible_values_fall_through(tmp_path: Path, pixels: Pixels) -> None:
    wrong = sizes("250", "250").encode()  # nanometres without their unit
    path = write(tmp_path / "a.ome.tif", pixels, description=wrong)
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.5)
        assert slide.notes == [
            "its OME-XML: 250 mpp, which no scanner has; 0.5 of its tags is taken"
        ]
    inch = {"resolution": (72, 72), "resolutionunit": "INCH"}
    path = write(tmp_path / "b.ome.tif", pixels, description=sizes("0.3", "0.3").encode(), **inch)
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.3)
        assert slide.notes == []
    path = write(tmp_path / "c.ome.tif", pixels, description=wrong, **inch)
    with pytest.raises(SlideError, match=r"says 250 mpp, outside 0\.05 to 10"):
        open_slide(path)


def test_objective_comes_last() -> None:
    tags = StatedMpp(x=352.8, y=352.8, source="file", place="its tags")
    chosen, notes = choose_mpp("a.svs", [tags], 20.0)
    assert (chosen.mean, chosen.source) == (0.5, "objective")
    assert notes == ["its tags: 352.8 mpp, which no scanner has; 0.5 of its objective is taken"]
    with pytest.raises(SlideError, match="does not say its mpp, nor its objective"):
        choose_mpp("a.svs", [], None)
    with pytest.raises(SlideError, match=r"a\.svs: 40 mpp was given, outside 0\.05 to 10"):
        choose_mpp("a.svs", [given_mpp(40.0)], 20.0)


def test_pixels_that_are_not_square_need_a_word(tmp_path: Path, pixels: Pixels) -> None:
    path = write(tmp_path / "a.tif", pixels, resolution=(PER_CM, PER_CM * 0.9))
    with pytest.raises(SlideError, match=r"says 0\.5 mpp across and 0\.55\d* mpp down") as caught:
        open_slide(path)
    assert "--allow-anisotropic" in str(caught.value)
    with open_slide(path, ReadOptions(allow_anisotropic=True)) as slide:
        assert slide.mpp_x == pytest.approx(0.5)
        assert slide.mpp_y == pytest.approx(0.5556, rel=1e-3)
        assert slide.mpp == pytest.approx(0.527, rel=1e-3)
        assert "its pixels are not square: 0.5 mpp across" in slide.notes[0]
    with open_slide(path, ReadOptions(mpp=0.5)) as slide:
        assert (slide.mpp_source, slide.notes) == ("given", [])
    path = write(tmp_path / "b.tif", pixels, resolution=(PER_CM, PER_CM * 0.985))
    with open_slide(path) as slide:
        assert slide.notes == []


@pytest.mark.parametrize(("ratio", "refused"), [(1.019, False), (1.021, True)])
@pytest.mark.parametrize("turned", [False, True])
def test_pixels_may_be_two_percent_from_square(
    ratio: float, *, turned: bool, refused: bool
) -> None:
    x, y = (0.5 * ratio, 0.5) if turned else (0.5, 0.5 * ratio)
    stated = [StatedMpp(x=x, y=y, source="file", place="its tags")]
    if refused:
        with pytest.raises(SlideError, match="must be square within 2%"):
            choose_mpp("a.svs", stated, None)
    else:
        assert choose_mpp("a.svs", stated, None) == (stated[0], [])


def test_objective_that_contradicts_the_mpp_is_said(tmp_path: Path, pixels: Pixels) -> None:
    def described(power: int, mpp: float = 0.5) -> list[str]:
        text = f"Aperio Image Library v12.0.15\r\n|AppMag = {power}|MPP = {mpp:.4f}".encode()
        path = write(tmp_path / f"{power}-{mpp}.svs", pixels, description=text)
        with open_slide(path) as slide:
            assert slide.mpp == pytest.approx(mpp)
            assert slide.vendor == "aperio"
            return slide.notes

    # Scanners that call themselves 20x have 0.5 mpp, or up to a third more or less.
    assert [described(20, mpp) for mpp in (0.5, 0.4, 0.65)] == [[]] * 3
    (note,) = described(40)
    assert "0.5 mpp (its tags) and its objective of 40x (about 0.25 mpp) contradict" in note


def test_orientation_tag_is_said(tmp_path: Path, pixels: Pixels) -> None:
    path = write(tmp_path / "a.tif", pixels, extratags=[(274, "H", 1, 6, True)])
    with open_slide(path) as slide:
        assert slide.notes == [
            "its orientation tag says 6 (turned or mirrored); it is read as it is stored"
        ]


def wide_gamut() -> bytes:
    """A profile of other colours than sRGB's: red and blue are swapped."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


def test_icc_profile_is_kept_and_applied_on_demand(tmp_path: Path, pixels: Pixels) -> None:
    profile = wide_gamut()
    tag = [(34675, "B", len(profile), profile, True)]
    path = write(tmp_path / "a.tif", pixels, extratags=tag)
    with open_slide(path) as plain, open_slide(path, ReadOptions(icc=True)) as converted:
        assert plain.icc_profile == converted.icc_profile == profile
        stored, shown = (slide.region(0, 0, 0, 512, 512) for slide in (plain, converted))
    np.testing.assert_array_equal(stored, pixels)
    swapped = pixels[..., ::-1].astype(int)
    assert np.abs(shown - swapped).mean() < 8 < np.abs(shown - pixels.astype(int)).mean()
    lake = create_lake(tmp_path / "lake", LakeConfig(tile_px=256, mpps=(0.5,)))
    size, mark = fingerprint(path)
    row = {"slide": 0, "slide_id": "a", "uri": path, "bytes": size, "fingerprint": mark}
    cuts = []
    for settings in (CutSettings(), CutSettings(icc=True)):
        converted_row = {**row, "icc": settings.icc, "cut_with": settings.to_json()}
        cuts.append(cut_slide(lake.store, lake.config, converted_row))
    was = differences(CutSettings(), 0.5, {"icc": True})
    assert was == ["colours as stored, now by the ICC profile"]
    assert differences(CutSettings(), 0.5, {"icc": False, "allow_anisotropic": True}) == []
    assert [cut.row["icc_profile"] for cut in cuts] == [profile, profile]
    shards = [cut.grids[0.5].shard for cut in cuts]
    assert shards[0] is not None
    assert shards[1] is not None
    assert shards[0].path != shards[1].path
    with open_slide(write(tmp_path / "b.tif", pixels), ReadOptions(icc=True)) as slide:
        assert slide.icc_profile is None
        assert "it has no ICC profile" in slide.notes[0]


def test_damaged_profile_matters_only_where_it_is_wanted(tmp_path: Path, pixels: Pixels) -> None:
    path = write(tmp_path / "a.tif", pixels, extratags=[(34675, "B", 200, bytes(200), True)])
    with open_slide(path) as slide:
        assert slide.region(0, 0, 0, 8, 8).shape == (8, 8, 3)


def test_earlier_lake_takes_the_new_facts(tmp_path: Path, pixels: Pixels) -> None:
    with tarfile.open(ROOT / "tests/data/format1.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    lake = open_lake(tmp_path / "lake")
    assert "notes" not in lake.slides().collect_schema().names()
    write_contact_sheet(lake)
    path = write_slide(tmp_path / "new.tiff", [real_pixels(), reduced(real_pixels(), 5)], jpeg=True)
    size, mark = fingerprint(str(path))
    row = {"slide_id": "new", "uri": str(path), "bytes": size, "fingerprint": mark, "mpp": None}
    (registered,) = lake.committer.register([row])
    cut = cut_slide(lake.store, lake.config, registered)
    cut.row["notes"] = "odd"
    lake.committer.commit_slides([cut])
    lake = open_lake(lake.uri)
    rows = {r["slide_id"]: r for r in lake.slides().collect().to_dicts()}
    assert (rows["new"]["notes"], rows["new"]["mpp_x"]) == ("odd", 0.5)
    assert rows["a"]["notes"] is None
    assert verify(lake).ok
    assert b"odd" in lake.read_bytes(write_contact_sheet(lake).rpartition("/")[2])


def test_other_units_are_no_lengths(tmp_path: Path, pixels: Pixels) -> None:
    for number, attributes in enumerate(
        (sizes("1", "1", "pixel"), sizes("a", "1"), sizes("-1", "1"), sizes("inf", "1"))
    ):
        path = write(tmp_path / f"{number}.ome.tif", pixels, description=attributes.encode())
        assert ome_mpp(path) is None
    assert ome_mpp(str(REAL_SLIDE)) is None
