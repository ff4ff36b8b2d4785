"""The table of slide readers: what is tried, in which order, and what is said of other files."""

import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from ingest.errors import SlideError
from ingest.readers.level_reader import LevelReader
from ingest.readers.mpp import StatedMpp
from ingest.readers.open_slide import open_slide
from ingest.readers.reader_table import READERS, ReaderEntry, folder_suffixes
from ingest.readers.slide_file import SlideFile
from ingest.readers.slide_reader import ReadOptions, RgbArray, SlideReader
from ingest.readers.tiff.jpeg_tiff import NotNativeError
from tests.conftest import REAL_SLIDE


class GreyReader(LevelReader):
    """A slide of one grey, as wide as the file has bytes."""

    name = "grey"

    def _stated_mpps(self) -> list[StatedMpp]:
        return [StatedMpp(x=0.5, y=0.5, source="file", place="the test")]

    def _pixels(self, level: int, x: int, y: int, width: int, height: int) -> RgbArray:
        return np.full((height, width, 3), 200, np.uint8)

    def close(self) -> None:
        """Close nothing."""


def open_grey(file: SlideFile, options: ReadOptions) -> SlideReader:
    side = Path(file.path).stat().st_size
    return GreyReader(file.path, [(side, side)], options)


def leave_it(file: SlideFile, options: ReadOptions) -> SlideReader:
    msg = f"{file.path} is left to the next reader, mpp {options.mpp}"
    raise NotNativeError(msg)


def entry(loader: str, **more: str) -> ReaderEntry:
    takes = lambda file: file.head.startswith(b"GREY")  # noqa: E731
    return ReaderEntry(takes=takes, loader=f"{__name__}:{loader}", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in READERS if READERS[name].refusal is None])
def test_loaders_are_there(name: str) -> None:
    module, _, function = READERS[name].loader.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_suffixes_of_folders_are_those_of_the_readers() -> None:
    slides = ".svs .tif .tiff .ndpi .mrxs .scn .vms .vmu .bif .svslide .dcm .czi"
    assert folder_suffixes() == set(slides.split())


def test_a_format_is_an_entry_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.grey"
    path.write_bytes(b"GREY" * 100)
    unknown = r"is not a slide format that openslide reads, nor a picture \(or it is truncated\)"
    with pytest.raises(SlideError, match=unknown):
        open_slide(str(path))
    monkeypatch.setitem(READERS, "shy", entry("leave_it"))
    with pytest.raises(SlideError, match=r"is left to the next reader, mpp 0\.25"):
        open_slide(str(path), ReadOptions(mpp=0.25))
    monkeypatch.setitem(READERS, "grey", entry("open_grey", formats="a grey file"))
    with open_slide(str(path)) as slide:
        assert (slide.name, slide.size_px, slide.mpp) == ("grey", (400, 400), 0.5)
        assert slide.overview(16.0)[0].shape == (13, 13, 3)
    (tmp_path / "b.txt").write_bytes(b"nothing known")
    with pytest.raises(SlideError, match="nor a picture, nor a grey file"):
        open_slide(str(tmp_path / "b.txt"))


def test_a_format_can_be_recognised_and_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.czi"
    path.write_bytes(b"ZISRAWFILE" + bytes(100))
    with pytest.raises(SlideError, match="is a Zeiss CZI, which is not read here; export it as"):
        open_slide(str(path))


def test_a_reader_can_be_named(tmp_path: Path) -> None:
    path = shutil.copy(REAL_SLIDE, tmp_path / "a.svs")
    for name in ("tiff", "openslide"):
        with open_slide(str(path), reader=name) as slide:
            slide.overview(16.0)
            assert slide.name == name
    with pytest.raises(SlideError, match="no slide reader 'magick'; there are czi, tiff"):
        open_slide(str(path), reader="magick")
