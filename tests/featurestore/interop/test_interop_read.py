"""Other tools' files as they are read: exact values, and a clear reason for each that is not."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from featurestore.interop import (
    READABLE,
    ImportFacts,
    InteropError,
    Problem,
    SlideFeatures,
    read_folder,
)
from featurestore.interop.formats import looks_like
from tests.worlds.interop_files import (
    SIDE,
    clam_features,
    clam_patches,
    cut_short,
    grid,
    slide2vec_features,
    slide2vec_tiles,
    stamp,
    trident_features,
    trident_patches,
    trident_tissue,
    two_contours,
    values,
)

CLAM = ImportFacts(mpp=0.5, teachers=("resnet50",))
STAMP = ImportFacts(level0_mpp=0.25)


def read(
    folder: Path, name: str, facts: ImportFacts | None = None
) -> tuple[dict[str, SlideFeatures], list[Problem]]:
    """Return all slides by name, in memory at once, and the files that were not taken."""
    problems: list[Problem] = []
    slides = list(read_folder(folder, name, facts=facts, on_problem=problems.append))
    return {slide.slide_id: slide for slide in slides}, problems


def only(folder: Path, name: str, facts: ImportFacts | None = None) -> SlideFeatures:
    slides, problems = read(folder, name, facts)
    assert not problems
    (slide,) = slides.values()
    return slide


def reason(folder: Path, name: str, facts: ImportFacts | None = None) -> str:
    """Return the only problem of a folder."""
    (problem,) = read(folder, name, facts)[1]
    assert problem.failed
    return problem.reason


# ---------------------------------------------------------------------- TRIDENT


def test_trident_job_with_two_encoders(tmp_path: Path) -> None:
    job, xy = tmp_path / "20x_256px_0px_overlap", two_contours()
    trident_patches(job, "a", xy)
    for encoder, dim in (("uni_v1", 8), ("conch_v15", 6)):
        trident_features(job, "a", xy, encoder, values(len(xy), dim))
    tissue = trident_tissue(tmp_path, "a")
    slide = only(tmp_path, "trident")
    assert np.array_equal(slide.xy, xy)
    assert sorted(slide.features) == ["conch_v15", "uni_v1"]
    assert np.array_equal(slide.features["uni_v1"], values(len(xy), 8))
    assert (slide.tile_px, slide.tile_px_level0, slide.mpp) == (256, SIDE, 0.5)
    assert (slide.level0_mpp, slide.effective_mpp) == (0.25, 0.5)
    assert slide.mpp_source == "10 / magnification"
    assert (slide.width_px, slide.height_px) == (20000, 12000)
    assert slide.tissue_geojson is not None
    assert json.loads(slide.tissue_geojson) == tissue


def test_trident_features_in_another_order_are_put_in_that_of_the_patches(tmp_path: Path) -> None:
    xy, order = two_contours(), np.random.default_rng(1).permutation(21)
    trident_patches(tmp_path, "a", xy)
    trident_features(tmp_path, "a", xy[order], "uni", values(21, 4)[order])
    assert np.array_equal(only(tmp_path, "trident").features["uni"], values(21, 4))


def test_trident_one_folder_of_features_is_enough(tmp_path: Path) -> None:
    xy = two_contours()
    trident_features(tmp_path / "job", "a", xy, "uni", values(21, 4))
    slide = only(tmp_path / "job" / "features_uni", "trident")
    assert np.array_equal(slide.xy, xy)
    assert list(slide.features) == ["uni"]


def test_trident_pt_files_take_their_order_from_the_patches(tmp_path: Path) -> None:
    xy = two_contours()
    trident_patches(tmp_path, "a", xy)
    folder = tmp_path / "features_uni"
    folder.mkdir()
    torch.save(values(21, 4), folder / "a.pt")  # TRIDENT saves the bare numpy array
    assert np.array_equal(only(tmp_path, "trident").features["uni"], values(21, 4))
    (tmp_path / "patches" / "a_patches.h5").unlink()
    assert "patches/<slide>_patches.h5 is needed" in reason(tmp_path, "trident")


@pytest.mark.parametrize("shape", [(0, 8), (0,)])
def test_trident_empty_slide_stays_a_slide(tmp_path: Path, shape: tuple[int, ...]) -> None:
    empty = np.zeros((0, 2), np.int64)
    trident_patches(tmp_path, "a", empty)
    path = tmp_path / "features_uni" / "a.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file["features"] = np.zeros(shape, np.float32)
        file["coords"] = empty
    slide = only(tmp_path, "trident")
    assert len(slide) == 0
    assert len(slide.features["uni"]) == 0


def test_trident_one_bad_file_stops_no_other(tmp_path: Path) -> None:
    xy = two_contours()
    for name in ("a", "b", "c", "d", "e", "f"):
        trident_patches(tmp_path, name, xy)
        trident_features(tmp_path, name, xy, "uni", values(21, 4))
    bad = values(21, 4)
    bad[3, 1] = np.nan
    trident_features(tmp_path, "b", xy, "uni", bad)
    trident_features(tmp_path, "c", xy, "uni", values(20, 4))
    cut_short(tmp_path / "features_uni" / "d.h5")
    trident_features(tmp_path, "e", xy + 1, "uni", values(21, 4))
    with h5py.File(tmp_path / "patches" / "f_patches.h5", "w") as file:
        file["features"] = [1.0]
    slides, problems = read(tmp_path, "trident")
    reasons = {problem.slide_id: problem.reason for problem in problems}
    assert sorted(slides) == ["a", "b", "c", "d", "e"]
    assert list(slides["a"].features) == ["uni"]
    assert all(not slides[name].features for name in "bcde")
    assert "features of 1 tile are NaN or infinite, first row 3" in reasons["b"]
    assert "20 features for 21 coordinates" in reasons["c"]
    assert "can't be read as HDF5, perhaps it is cut short" in reasons["d"]
    assert (
        "its 21 tiles are not the 21 that are known of this slide (0 are the same)" in reasons["e"]
    )
    assert "has no dataset 'coords'; it has: features" in reasons["f"]
    assert all(Path(problem.path).is_file() for problem in problems)


def test_trident_vectors_of_slides_are_left_out_and_said(tmp_path: Path) -> None:
    trident_patches(tmp_path, "a", two_contours())
    (tmp_path / "slide_features_titan").mkdir()
    (tmp_path / "slide_features_titan" / "a.h5").write_bytes(b"")
    slides, (problem,) = read(tmp_path, "trident")
    assert list(slides) == ["a"]
    assert not problem.failed
    assert "one vector of the whole slide" in problem.reason


@pytest.mark.parametrize(
    ("attrs", "facts", "message"),
    [
        ({"target_magnification": "None"}, ImportFacts(), "'target_magnification' is None"),
        ({"patch_size": 0}, ImportFacts(), "'patch_size' is 0; a positive number"),
        ({}, ImportFacts(mpp=0.25), r"says 0\.5, but --mpp 0\.25 was given"),
    ],
)
def test_trident_attributes_that_say_too_little(
    tmp_path: Path, attrs: dict[str, Any], facts: ImportFacts, message: str
) -> None:
    trident_patches(tmp_path, "a", two_contours(), **attrs)
    assert re.search(message, reason(tmp_path, "trident", facts))


def test_trident_mpp_of_the_slide_comes_from_who_knows_it(tmp_path: Path) -> None:
    trident_patches(tmp_path, "a", two_contours())
    slide = only(tmp_path, "trident", ImportFacts(known_mpp={"a": 0.2325}.get))
    assert (slide.level0_mpp, slide.level0_mpp_source, slide.mpp) == (0.2325, "lake", 0.5)
    assert slide.effective_mpp == pytest.approx(0.465)


# ---------------------------------------------------------------------- CLAM


def test_clam_patches_and_features(tmp_path: Path) -> None:
    xy = two_contours()
    clam_patches(tmp_path / "run", "a", xy)
    clam_features(tmp_path / "FEATURES", "a", xy, values(21, 8))
    slide = only(tmp_path, "clam", CLAM)
    assert np.array_equal(slide.xy, xy)
    assert np.array_equal(slide.features["resnet50"], values(21, 8))
    assert (slide.tile_px, slide.tile_px_level0, slide.mpp) == (256, SIDE, 0.5)
    assert (slide.mpp_source, slide.level0_mpp) == ("given", 0.25)


def test_clam_pt_files_alone_stand_in_the_order_of_the_patches(tmp_path: Path) -> None:
    clam_patches(tmp_path, "a", two_contours())
    clam_features(tmp_path / "F", "a", two_contours(), values(21, 8))
    (tmp_path / "F" / "h5_files" / "a.h5").unlink()
    assert np.array_equal(only(tmp_path, "clam", CLAM).features["resnet50"], values(21, 8))
    (tmp_path / "patches" / "a.h5").unlink()
    assert "pt_files hold none" in reason(tmp_path, "clam", CLAM)


def test_clam_mpp_is_asked_for(tmp_path: Path) -> None:
    clam_patches(tmp_path, "a", two_contours())
    message = "CLAM files do not say their mpp; give --mpp, the microns per pixel of the patches"
    assert reason(tmp_path, "clam") == message
    slide = only(tmp_path, "clam", ImportFacts(level0_mpp=0.25))
    assert (slide.mpp, slide.mpp_source) == (0.5, "level-0 mpp x downsample")


def test_clam_mpp_of_another_level_is_refused(tmp_path: Path) -> None:
    clam_patches(tmp_path, "a", two_contours())
    facts = ImportFacts(mpp=0.25, known_mpp={"a": 0.25}.get)
    assert "patches of 0.5 mpp by the slide's level-0 mpp" in reason(tmp_path, "clam", facts)


def test_clam_features_alone_need_the_size_of_a_patch(tmp_path: Path) -> None:
    clam_features(tmp_path, "a", two_contours(), values(21, 8))
    assert "give --tile-px and --tile-px-level0" in reason(tmp_path, "clam", CLAM)
    facts = ImportFacts(mpp=0.5, tile_px=256, tile_px_level0=SIDE, teachers=("resnet50",))
    slide = only(tmp_path, "clam", facts)
    assert (slide.tile_px, slide.tile_px_level0, slide.level0_mpp) == (256, SIDE, 0.25)


def test_clam_teacher_is_asked_for(tmp_path: Path) -> None:
    clam_features(tmp_path / "A", "a", two_contours(), values(21, 8))
    with pytest.raises(InteropError, match="give --teacher NAME for the features in A"):
        read(tmp_path, "clam", ImportFacts(mpp=0.5))
    clam_features(tmp_path / "B", "a", two_contours(), values(21, 4))
    with pytest.raises(InteropError, match=r"several folders .*A, B.* --teacher NAME=FOLDER"):
        read(tmp_path, "clam", CLAM)
    clam_patches(tmp_path, "a", two_contours())
    slide = only(tmp_path, "clam", ImportFacts(mpp=0.5, teachers=("uni=A", "conch=B")))
    assert {name: features.shape[1] for name, features in slide.features.items()} == {
        "uni": 8,
        "conch": 4,
    }
    with pytest.raises(InteropError, match=r"no such folder of features.*there are: A, B"):
        read(tmp_path, "clam", ImportFacts(mpp=0.5, teachers=("uni=C",)))


def test_clam_old_files_that_were_shrunk_once_more_are_not_guessed(tmp_path: Path) -> None:
    attrs = {"patch_size": 512, "patch_level": 0, "custom_downsample": 2}
    clam_patches(tmp_path, "a", two_contours(), **attrs, downsample=np.array([1.0, 1.0]))
    assert "custom_downsample is 2, and tools differ" in reason(tmp_path, "clam", CLAM)
    facts = ImportFacts(mpp=0.5, tile_px=256, tile_px_level0=SIDE)
    slide = only(tmp_path, "clam", facts)
    assert (slide.tile_px, slide.tile_px_level0) == (256, SIDE)


# ---------------------------------------------------------------------- STAMP


def test_stamp_microns_become_pixels(tmp_path: Path) -> None:
    xy = grid(5, 4, 1024)
    stamp(tmp_path / "virchow2-0123abcd" / "site1", "a", xy * 0.25, values(20, 8))
    slide = only(tmp_path, "stamp", STAMP)
    assert np.array_equal(slide.xy, xy)
    assert slide.features["virchow2"].dtype == np.float16
    assert np.array_equal(slide.features["virchow2"], values(20, 8).astype(np.float16))
    assert (slide.tile_px, slide.tile_px_level0) == (224, 1024)
    assert slide.mpp == pytest.approx(256 / 224)
    assert slide.effective_mpp == pytest.approx(256 / 224)


def test_stamp_needs_the_mpp_of_the_slide(tmp_path: Path) -> None:
    stamp(tmp_path, "a", grid(2, 2, 256), values(4, 8))
    assert "STAMP's coordinates are microns; give --level0-mpp" in reason(tmp_path, "stamp")
    slide = only(tmp_path, "stamp", ImportFacts(known_mpp={"a": 0.5}.get))
    assert np.array_equal(slide.xy, grid(2, 2, 512))


@pytest.mark.parametrize(
    ("attrs", "scale"),
    [
        ({"tile_size_um": None, "tile_size": 256.0}, 1.0),
        ({"unit": None}, 1.0),
        ({"tile_size_um": None, "unit": None, "tile_size_px": None}, 224 / 256),
        ({"tile_size_um": None, "unit": None, "tile_size_px": None, "tile_size": 224}, 224 / 256),
    ],
)
def test_stamp_older_files(tmp_path: Path, attrs: dict[str, Any], scale: float) -> None:
    stamp(tmp_path, "a", grid(3, 2, 1024) * 0.25 * scale, values(6, 8), **attrs)
    slide = only(tmp_path, "stamp", STAMP)
    assert np.array_equal(slide.xy, grid(3, 2, 1024))
    assert (slide.tile_px, slide.tile_px_level0) == (224, 1024)


def test_stamp_file_of_an_unknown_unit(tmp_path: Path) -> None:
    attrs = {"tile_size_um": None, "unit": None, "tile_size_px": None}
    stamp(tmp_path, "a", grid(3, 2, 300), values(6, 8), **attrs)
    assert "the unit of its coordinates is not known" in reason(tmp_path, "stamp", STAMP)


def test_stamp_file_without_the_pixels_of_a_tile(tmp_path: Path) -> None:
    stamp(tmp_path, "a", grid(2, 2, 256), values(4, 8), tile_size_px=None)
    assert "give --tile-px or --mpp" in reason(tmp_path, "stamp", STAMP)
    slide = only(tmp_path, "stamp", ImportFacts(level0_mpp=0.25, tile_px=224))
    assert (slide.tile_px, slide.mpp) == (224, 256 / 224)


def test_stamp_without_coordinates_or_of_patients(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["patch_embeddings"] = values(4, 8)
        file.attrs["extractor"] = "x"
    stamp(tmp_path, "p", grid(1, 1), values(1, 8), feat_type="patient", encoder="titan")
    slides, problems = read(tmp_path, "stamp", STAMP)
    problem_of = {problem.slide_id: problem for problem in problems}
    assert not slides
    assert "a lake must know where a tile is" in problem_of["a"].reason
    assert "one vector of a slide or patient" in problem_of["p"].reason
    assert not problem_of["p"].failed


def test_stamp_old_extractor_without_a_name_is_asked_for(tmp_path: Path) -> None:
    stamp(tmp_path / "old", "a", grid(2, 2, 256), values(4, 8), extractor=None)
    with pytest.raises(InteropError, match="give --teacher NAME for the features in old"):
        read(tmp_path, "stamp", STAMP)
    facts = ImportFacts(level0_mpp=0.25, teachers=("ctranspath",))
    assert list(only(tmp_path, "stamp", facts).features) == ["ctranspath"]


def test_stamp_same_name_twice_is_said(tmp_path: Path) -> None:
    for site in ("one", "two"):
        stamp(tmp_path / "virchow2" / site, "a", grid(2, 2, 256), values(4, 8))
    slides, (problem,) = read(tmp_path, "stamp", STAMP)
    assert list(slides) == ["a"]
    assert "has the same name and extractor as" in problem.reason


# ---------------------------------------------------------------------- slide2vec


@pytest.mark.parametrize("kind", ["pt", "npz"])
def test_slide2vec_run(tmp_path: Path, kind: str) -> None:
    xy = grid(4, 3)
    slide2vec_tiles(tmp_path, "a", xy)
    slide2vec_features(tmp_path, "a", values(12, 8).astype(np.float16), kind=kind)
    slide = only(tmp_path, "slide2vec")
    assert np.array_equal(slide.xy, xy)
    assert np.array_equal(slide.features["prost40m"], values(12, 8).astype(np.float16))
    assert (slide.mpp, slide.level0_mpp, slide.mpp_source) == (0.5, 0.2525, "file")
    assert slide.effective_mpp == pytest.approx(0.505)
    assert (slide.width_px, slide.height_px) == (20000, 12000)


def test_slide2vec_bfloat16_and_slides_without_tiles(tmp_path: Path) -> None:
    slide2vec_tiles(tmp_path, "a", grid(2, 2))
    path = slide2vec_features(tmp_path, "a", values(4, 8))
    torch.save(torch.from_numpy(values(4, 8)).bfloat16(), path)
    slide2vec_tiles(tmp_path, "empty", np.zeros((0, 2), np.int64))
    slides, problems = read(tmp_path, "slide2vec")
    assert not problems
    assert np.allclose(slides["a"].features["prost40m"], values(4, 8), rtol=2**-8)
    assert len(slides["empty"]) == 0


def test_slide2vec_what_is_missing_or_does_not_agree(tmp_path: Path) -> None:
    slide2vec_tiles(tmp_path, "a", grid(2, 2))
    slide2vec_features(tmp_path, "a", values(5, 8))
    slide2vec_tiles(tmp_path, "b", grid(2, 2), n_tiles=3)
    slide2vec_features(tmp_path, "c", values(4, 8))
    slide2vec_tiles(tmp_path, "d", grid(2, 2))
    cut_short(tmp_path / "tiles" / "d.coordinates.npz")
    _, problems = read(tmp_path, "slide2vec")
    reasons = {problem.slide_id: problem.reason for problem in problems}
    assert "5 features for 4 coordinates" in reasons["a"]
    assert "has 4 tiles, its metadata say 3" in reasons["b"]
    assert "no tiles/c.coordinates.meta.json" in reasons["c"]
    assert "can't be read as .npz, perhaps it is cut short" in reasons["d"]


# ---------------------------------------------------------------------- all of them


class Trap:
    """Makes a file if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["torch", "pickle", "npz"])
def test_nothing_is_ever_unpickled(tmp_path: Path, kind: str) -> None:
    trap = tmp_path / "sprung"
    slide2vec_tiles(tmp_path, "a", grid(2, 2))
    path = slide2vec_features(tmp_path, "a", values(4, 8), kind="npz" if kind == "npz" else "pt")
    if kind == "torch":
        torch.save({"features": Trap(trap)}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Trap(trap)))
    else:
        np.savez(path, features=np.array([Trap(trap)], dtype=object))
    assert "can't be read as" in reason(tmp_path, "slide2vec")
    assert not trap.exists()


def test_pt_of_something_else_than_a_tensor(tmp_path: Path) -> None:
    slide2vec_tiles(tmp_path, "a", grid(2, 2))
    path = slide2vec_features(tmp_path, "a", values(4, 8))
    torch.save({"features": torch.zeros(4, 8)}, path)
    assert "holds a dict; one bare tensor (N, D) is needed" in reason(tmp_path, "slide2vec")


def test_wrong_folder_and_wrong_format(tmp_path: Path) -> None:
    with pytest.raises(InteropError, match="nowhere is no folder"):
        read(tmp_path / "nowhere", "trident")
    with pytest.raises(InteropError, match=r"nothing of the format clam under .*: looked for"):
        read(tmp_path, "clam")
    trident_patches(tmp_path, "a", two_contours())
    for name in ("clam", "stamp", "slide2vec"):
        with pytest.raises(InteropError, match="it looks like trident: give --format trident"):
            read(tmp_path, name)
    with pytest.raises(InteropError, match="'anndata' can't be imported; those that can: trident"):
        read(tmp_path, "anndata")


def test_each_format_is_recognised_for_the_hint(tmp_path: Path) -> None:
    made = {name: tmp_path / name for name in READABLE}
    trident_patches(made["trident"], "a", two_contours())
    clam_patches(made["clam"], "a", grid(2, 2))
    clam_features(made["clam"] / "f", "a", grid(2, 2), values(4, 8))
    stamp(made["stamp"] / "uni", "a", grid(2, 2) * 0.25, values(4, 8))
    slide2vec_tiles(made["slide2vec"], "a", grid(2, 2))
    slide2vec_features(made["slide2vec"], "a", values(4, 8))
    made["hub"].mkdir()
    (made["hub"] / "cohort.json").write_text("{}")
    assert {name: looks_like(folder) for name, folder in made.items()} == {
        name: [name] for name in READABLE
    }
    assert looks_like(tmp_path) == sorted(READABLE)  # folders are searched by their names


def test_teacher_that_is_not_there_is_named(tmp_path: Path) -> None:
    trident_features(tmp_path, "a", two_contours(), "uni", values(21, 4))
    trident_features(tmp_path, "a", two_contours(), "conch", values(21, 4))
    with pytest.raises(InteropError, match=r"no features of uni2 .*there are: conch, uni;"):
        read(tmp_path, "trident", ImportFacts(teachers=("uni2",)))
    assert list(only(tmp_path, "trident", ImportFacts(teachers=("uni",))).features) == ["uni"]
    slide = only(tmp_path, "trident", ImportFacts(teachers=("mine=features_uni",)))
    assert sorted(slide.features) == ["conch", "mine"]
