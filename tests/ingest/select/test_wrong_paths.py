"""Paths that users type wrong: nothing is written, and the message says what is wrong."""

import shutil
from pathlib import Path

import pytest

import slidelake
from featurestore import LakeConfig
from ingest.errors import InputError
from ingest.select.sources import resolve
from tests.conftest import REAL_SLIDE


@pytest.mark.parametrize("name", ["slidez", "slides/slidez", "no such folder"])
def test_a_folder_that_does_not_exist_makes_no_lake(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"{name} does not exist; give a file"):
        slidelake.ingest(str(tmp_path / "lake"), [str(tmp_path / name)], LakeConfig())
    assert not (tmp_path / "lake").exists()


def test_one_path_is_one_input_and_no_path_for_each_letter(tmp_path: Path) -> None:
    (slide,) = resolve(str(REAL_SLIDE))
    assert slide.uri == str(REAL_SLIDE)
    assert resolve(f"file://{REAL_SLIDE.parent}") == [slide]
    with pytest.raises(InputError, match="nowhere does not exist"):
        resolve(str(tmp_path / "nowhere"))


def test_lake_and_slides_that_were_exchanged_are_refused(tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    shutil.copy(REAL_SLIDE, slides)
    before = list(slides.iterdir())
    for lake in (str(slides), f"file://{slides}"):
        with pytest.raises(InputError, match=r"is no lake and holds slides .*the lake comes first"):
            slidelake.ingest(lake, [str(REAL_SLIDE)], LakeConfig())
    assert list(slides.iterdir()) == before
