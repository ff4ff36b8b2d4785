"""Slides that are several files: DICOM series and Hamamatsu indexes."""

from pathlib import Path

import numpy as np
import pytest

from ingest.errors import InputError
from ingest.readers.dicom_header import read_header
from ingest.readers.open_slide import open_slide
from ingest.select.file_groups import HEAD_BYTES, named_files
from ingest.select.sources import resolve
from tests.worlds.dicom_slide import write_instance
from tests.worlds.planted_levels import FAULTS, Pixels, real_pixels, reduced

SERIES, OTHER = "1.2.826.7.1", "1.2.826.7.2"


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return np.ascontiguousarray(real_pixels()[:1280, 512:1536])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pixels: Pixels) -> Path:
    """Two series: one of two levels, a label and an overview, one of one level."""
    folder = tmp_path_factory.mktemp("dicom")
    label = np.full((64, 64, 3), 250, np.uint8)
    write_instance(folder / "a-1.dcm", reduced(pixels, 4), series=SERIES, number=1, mpp=2.0)
    write_instance(folder / "a-2.dcm", pixels, series=SERIES, number=2)
    write_instance(folder / "a-3.dcm", label, series=SERIES, number=3, kind="LABEL")
    write_instance(folder / "a-4.dcm", label, series=SERIES, number=4, kind="OVERVIEW")
    write_instance(folder / "b.dcm", pixels[:512], series=OTHER, number=1)
    return folder


def test_folder_is_one_slide_a_series(folder: Path) -> None:
    notes: list[str] = []
    sources = resolve([str(folder)], note=notes.append)
    assert [source.slide_id for source in sources] == ["a-2", "b"]
    (note,) = notes
    assert note.startswith("5 DICOM files hold 2 slides, each in the file of its largest level; ")
    assert note.endswith("left out: 3 files of other levels, labels and macros")
    one_by_one = resolve([str(path) for path in sorted(folder.iterdir())])
    assert one_by_one == sources == resolve([f"{folder}/*.dcm"])


def test_series_is_read_with_its_levels(folder: Path, pixels: Pixels) -> None:
    with open_slide(str(folder / "a-2.dcm")) as slide:
        assert (slide.vendor, slide.name, slide.levels) == ("dicom", "openslide", 2)
        assert slide.mpp == pytest.approx(0.5)
        assert slide.objective == 20
        assert slide.size_px == (1024, 1280)
        assert slide.is_fit(1)
        assert np.abs(slide.region(0, 0, 0, 1024, 1280).astype(int) - pixels).mean() < 6


def test_wrong_level_of_a_series_is_left_out(tmp_path: Path, pixels: Pixels) -> None:
    wrong = FAULTS["flipped"](reduced(pixels, 4))
    write_instance(tmp_path / "1.dcm", pixels, series=SERIES, number=1)
    write_instance(tmp_path / "2.dcm", wrong, series=SERIES, number=2, mpp=2.0)
    with open_slide(str(tmp_path / "1.dcm")) as slide:
        assert [slide.is_fit(0), slide.is_fit(1)] == [True, False]


def test_series_without_a_volume_is_no_slide(tmp_path: Path) -> None:
    label = np.full((64, 64, 3), 250, np.uint8)
    for number, kind in enumerate(("LABEL", "THUMBNAIL")):
        name = tmp_path / f"{kind}.dcm"
        write_instance(name, label, series=SERIES, number=number, kind=kind)
    with pytest.raises(InputError, match="no slides found"):
        resolve([str(tmp_path)])


def test_header_is_read_as_far_as_it_reaches(folder: Path) -> None:
    data = (folder / "a-2.dcm").read_bytes()
    header = read_header(data[:HEAD_BYTES])
    assert header is not None
    assert (header.series, header.is_volume, header.pixels) == (SERIES, True, 1024 * 1280)
    for size in range(0, 2000, 37):
        part = read_header(data[:size])
        assert (part is None) == (size < 132)
    assert read_header(b"no DICOM" * 100) is None


def test_pictures_of_a_hamamatsu_index_are_no_slides(tmp_path: Path) -> None:
    """No such slide could be had: that openslide reads it is untried, that it is one slide not."""
    names = "ImageFile=a-0.jpg\nImageFile(1,0)=a-1.jpg\nMapFile=a-m.jpg\n"
    (tmp_path / "a.vms").write_text(f"[Virtual Microscope Specimen]\n{names}")
    for name in ("a-0.jpg", "a-1.jpg", "a-m.jpg", "other.jpg"):
        (tmp_path / name).write_bytes(b"\xff\xd8\xff")
    notes: list[str] = []
    sources = resolve([f"{tmp_path}/*"], note=notes.append)
    assert [source.slide_id for source in sources] == ["a", "other"]
    assert notes == ["3 pictures belong to Hamamatsu slides (.vms, .vmu): no slides"]
    assert [source.slide_id for source in resolve([str(tmp_path)])] == ["a"]
    assert named_files("no index") == set()
