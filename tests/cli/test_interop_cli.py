"""The commands import and export, as people run them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore import open_lake
from featurestore.interop import READABLE, WRITABLE
from tests.conftest import ROOT, TEACHERS
from tests.worlds.command_lines import Answer, Slidelake
from tests.worlds.interop_files import (
    clam_features,
    clam_patches,
    cut_short,
    grid,
    trident_features,
    trident_patches,
    two_contours,
    values,
)

Words = list[str | Path]
AsJson = Callable[..., tuple[int, Any]]


def parts(answer: Answer) -> tuple[int, str, str]:
    """Exit code, output and errors."""
    return answer.code, answer.stdout, answer.stderr


@pytest.fixture
def as_json(slidelake: Slidelake) -> AsJson:
    """Run words with --json: the exit code and the object."""

    def as_json(*words: str | Path) -> tuple[int, Any]:
        done = slidelake(*words, "--json", code=None)
        assert done.stdout, done.stderr
        return done.code, done.value

    return as_json


def test_import_lists_each_failure_and_goes_on(
    tmp_path: Path, slidelake: Slidelake, as_json: AsJson
) -> None:
    for name in ("a", "b"):
        trident_patches(tmp_path / "job", name, two_contours())
        trident_features(tmp_path / "job", name, two_contours(), "uni", values(21, 8))
    cut_short(tmp_path / "job" / "features_uni" / "b.h5")
    code, answer = as_json("import", tmp_path / "lake", tmp_path / "job", "--format", "trident")
    assert code == 1
    assert (answer["slides"], answer["tiles"], answer["features"]) == (
        2,
        {"0.5": 42},
        {"uni at 0.5": 1},
    )
    assert [failed["slide_id"] for failed in answer["failed"]] == ["b"]
    code, out, _ = parts(
        slidelake("import", tmp_path / "lake", tmp_path / "job", "--format", "trident", code=None)
    )
    assert code == 1
    assert "b failed: " in out
    assert "2 slides, 0 new; 1 file failed" in out


def test_import_of_clam_asks_for_what_its_files_do_not_say(
    tmp_path: Path, slidelake: Slidelake, as_json: AsJson
) -> None:
    clam_patches(tmp_path / "clam", "a", grid(2, 2))
    clam_features(tmp_path / "clam", "a", grid(2, 2), values(4, 8))
    words: Words = ["import", tmp_path / "lake", tmp_path / "clam", "--format", "clam"]
    code, _, error = parts(slidelake(*words, code=None))
    assert (code, "give --teacher NAME" in error) == (2, True)
    code, _, error = parts(slidelake(*words, "--teacher", "resnet50", code=None))
    assert (code, "give --mpp, the microns per pixel of the patches" in error) == (2, True)
    code, answer = as_json(*words, "--teacher", "resnet50", "--mpp", "0.5")
    assert (code, answer["features"]) == (0, {"resnet50 at 0.5": 1})


@pytest.mark.parametrize(
    ("name", "files"),
    [("trident", "20x_*/features_*/*.h5"), ("clam", "features_*/pt_files/*.pt"),
     ("stamp", "*/*.h5"), ("hub", "cards/*.json"), ("anndata", "*.zarr"),
     ("geojson", "*.geojson")],
)  # fmt: skip
def test_export_of_a_real_lake(
    filled: Path, tmp_path: Path, slidelake: Slidelake, as_json: AsJson, name: str, files: str
) -> None:
    lake = open_lake(filled)
    words: Words = ["export", filled, tmp_path / "out", "--format", name, "--mpp", "0.5"]
    code, answer = as_json(*words, "--teacher", TEACHERS[0], "--at", str(lake.version))
    assert (code, answer["failed"], answer["version"]) == (0, [], lake.version)
    slides = set(lake.tiles_of(mpp=0.5)["slide_id"])
    assert {path.stem for path in (tmp_path / "out").glob(files)} == slides
    code, out, _ = parts(slidelake(*words, "--teacher", TEACHERS[0], code=None))
    assert code == 0
    assert f"0 slides written in 0 files, {len(slides)} were there already, 0 failed" in out


def test_export_and_import_say_what_is_wrong(
    filled: Path, tmp_path: Path, slidelake: Slidelake, as_json: AsJson
) -> None:
    code, _, error = parts(
        slidelake("export", filled, tmp_path / "o", "--format", "trident", code=None)
    )
    assert (code, "give --mpp" in error) == (2, True)
    code, _, error = parts(
        slidelake("export", filled, tmp_path / "o", "--format", "zip", "--mpp", "0.5", code=None)
    )
    assert (code, "those that can: trident, clam, stamp, hub, anndata, geojson" in error) == (
        2,
        True,
    )
    code, _, error = parts(
        slidelake("import", tmp_path / "lake", tmp_path, "--format", "stamp", code=None)
    )
    assert (code, "nothing of the format stamp under" in error) == (2, True)
    assert not (tmp_path / "lake").exists()


def test_the_page_has_every_format() -> None:
    """The help of `--format` names this page."""
    text = (ROOT / "docs" / "interop.md").read_text()
    for heading, names in (("Import", READABLE), ("Export", WRITABLE)):
        section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        assert re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE) == list(names)


def test_an_exported_job_comes_back_by_command(
    filled: Path, tmp_path: Path, slidelake: Slidelake, as_json: AsJson
) -> None:
    export: Words = ["export", filled, tmp_path / "job", "--format", "trident", "--mpp", "2.0"]
    slidelake(*export)
    code, answer = as_json("import", tmp_path / "lake", tmp_path / "job", "--format", "trident")
    assert (code, answer["failed"]) == (0, [])
    one, two = open_lake(filled), open_lake(tmp_path / "lake")
    for slide_id in one.tiles_of(mpp=2.0)["slide_id"]:
        for teacher in TEACHERS:
            bags = [lake.bag(slide_id, teacher, mpp=2.0) for lake in (one, two)]
            assert np.array_equal(bags[0].x, bags[1].x)
            assert np.array_equal(bags[0].y, bags[1].y)
            assert np.array_equal(bags[0].features, bags[1].features)
