"""Other tools' files in a lake: exactly their coordinates, each slide once, whatever happens."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import (
    IdentityError,
    Lake,
    LakeConfig,
    LakeError,
    create_lake,
    open_lake,
    tile_parts,
    verify,
)
from featurestore.interop import ImportFacts, ImportResult, InteropError, import_folder
from featurestore.interop.grid_cells import choose_cells
from featurestore.interop.incoming_tiles import config_for
from tests.worlds.interop_files import (
    SIDE,
    Int64Array,
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

FloatArray = npt.NDArray[np.floating]

ROOT = Path(__file__).resolve().parents[3]


def rows_of(lake: Lake, slide_id: str, teacher: str, mpp: float = 0.5) -> set[object]:
    """Return a slide's tiles as a set of (x, y, features), read by a plain query."""
    frame = lake.features(teacher, mpp=mpp).filter(pl.col("slide_id") == slide_id).collect()
    feature_rows: set[object] = {
        (x, y, tuple(f)) for x, y, f in frame.select("x", "y", teacher).rows()
    }
    assert len(feature_rows) == frame.height
    return feature_rows


def given_rows(xy: Int64Array, features: FloatArray) -> set[object]:
    stored = features.astype(np.float16).astype(np.float64)
    return {(int(x), int(y), tuple(row)) for (x, y), row in zip(xy, stored.tolist(), strict=True)}


def holds(lake: Lake, slide_id: str, teacher: str, xy: Int64Array, features: FloatArray) -> bool:
    """Whether questions, bags and verify all have exactly these tiles with these features."""
    lake_rows = rows_of(lake, slide_id, teacher)
    bag = lake.bag(slide_id, teacher, mpp=0.5)
    by_bag = given_rows(np.stack([bag.x, bag.y], 1).astype(np.int64), bag.features)
    assert np.all(np.diff(bag.tile_id) > 0)
    assert verify(lake).ok
    return lake_rows == by_bag == given_rows(xy, features)


def trident(job: Path, slide: str, xy: Int64Array, *teachers: str, dim: int = 8) -> None:
    folder = job / "20x_256px_0px_overlap"
    trident_patches(folder, slide, xy)
    for seed, teacher in enumerate(teachers):
        trident_features(folder, slide, xy, teacher, values(len(xy), dim, seed))


def take(lake: Path, folder: Path, name: str = "trident", **options: object) -> ImportResult:
    return import_folder(lake, folder, format=name, facts=ImportFacts(**options))  # type: ignore[arg-type]


# ---------------------------------------------------------------------- cells


@settings(max_examples=200, deadline=None)
@given(
    xy=st.lists(
        st.tuples(st.integers(0, 60_000), st.integers(0, 60_000)), max_size=40, unique=True
    ),
    side=st.integers(5, 1024),
)
def test_every_tile_has_a_cell_of_its_own_and_the_grid_is_the_coarsest(
    xy: list[tuple[int, int]], side: int
) -> None:
    places = np.array(xy, np.int64).reshape(-1, 2)
    try:
        cells = choose_cells(places, side)
    except InteropError as error:
        assert "more than 16384 cells" in str(error)  # noqa: PT017 - either outcome is right
        assert any(len(np.unique(places // (side >> k), axis=0)) < len(xy) for k in range(3))
        return
    assert len({*zip(cells.y.tolist(), cells.x.tolist(), strict=True)}) == len(xy)
    assert np.array_equal(places // cells.step_px, np.stack([cells.x, cells.y], 1).reshape(-1, 2))
    coarser = [side >> k for k in range(20) if side >> k > cells.step_px]
    assert all(len(np.unique(places // step, axis=0)) < len(xy) for step in coarser)


@pytest.mark.parametrize(
    ("xy", "message"),
    [
        ([(0, 0), (512, 0), (0, 0)], r"several tiles lie at 1 place \(x, y\): \(0, 0\)"),
        ([(-1, 0)], r"a tile is at \(-1, 0\), outside of any slide"),
        ([(2**31, 0)], "outside of any slide"),
        ([(0, 0), (1, 0), (40_000, 0)], "more than 16384 cells along the slide"),
    ],
)
def test_tiles_that_can_have_no_key(xy: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(InteropError, match=message):
        choose_cells(np.array(xy), 512)


# ---------------------------------------------------------------------- new lakes


def test_trident_job_becomes_a_lake(tmp_path: Path) -> None:
    xy = two_contours()
    trident(tmp_path / "job", "a", xy, "uni_v1", "conch_v15")
    trident(tmp_path / "job", "b", grid(2, 2), "uni_v1")
    trident(tmp_path / "job", "empty", np.zeros((0, 2), np.int64), "uni_v1")
    tissue = trident_tissue(tmp_path / "job", "a")
    done = take(tmp_path / "lake", tmp_path / "job")
    assert not done.failed
    assert (done.slides, done.new, done.tiles) == (3, 3, {"0.5": 25})
    lake = open_lake(tmp_path / "lake")
    assert (lake.config.tile_px, lake.config.mpps) == (256, (0.5,))
    assert holds(lake, "a", "uni_v1", xy, values(21, 8, 0))
    assert holds(lake, "a", "conch_v15", xy, values(21, 8, 1))
    assert holds(lake, "b", "uni_v1", grid(2, 2), values(4, 8, 0))
    slides = {row["slide_id"]: row for row in lake.slides().collect().iter_rows(named=True)}
    assert {row["state"] for row in slides.values()} == {"ready"}
    assert json.loads(slides["a"]["tissue_geojson"]) == tissue
    assert slides["a"]["mpp_source"] == "10 / magnification"
    assert slides["a"]["uri"].endswith("patches/a_patches.h5")
    assert (slides["a"]["width_px"], slides["a"]["height_px"]) == (20000, 12000)
    rows = {row["slide_id"]: row for row in lake.tiles_of(mpp=0.5).iter_rows(named=True)}
    assert rows["a"]["tile_px_level0"] == SIDE
    assert rows["a"]["grid_px_level0"] == SIDE // 2
    assert rows["b"]["grid_px_level0"] == SIDE
    assert rows["a"]["shard"] is None
    assert rows["empty"]["tiles"] == 0
    tiles = lake.tiles(mpp=0.5).filter(pl.col("slide_id") == "a").collect()
    _, mpps, grid_y, grid_x = tile_parts(tiles["tile_id"].to_numpy())
    assert set(mpps) == {0.5}
    assert np.array_equal(grid_y, tiles["y"].to_numpy() // (SIDE // 2))
    assert np.array_equal(grid_x, tiles["grid_x"].to_numpy())
    assert tiles["tissue"].null_count() == tiles.height


def test_one_job_with_two_magnifications(tmp_path: Path) -> None:
    job = tmp_path / "job"
    trident(job, "a", two_contours(), "uni")
    coarse = {"target_magnification": 5, "patch_size_level0": 2048}
    folder = job / "5x_256px_0px_overlap"
    trident_patches(folder, "a", grid(2, 1, 2048), **coarse)
    trident_features(folder, "a", grid(2, 1, 2048), "uni", values(2, 8), **coarse)
    done = take(tmp_path / "lake", job)
    assert done.tiles == {"0.5": 21, "2.0": 2}
    assert done.features == {"uni at 0.5": 1, "uni at 2.0": 1}
    lake = open_lake(tmp_path / "lake")
    assert lake.slides().collect().height == 1
    assert rows_of(lake, "a", "uni", 2.0) == given_rows(grid(2, 1, 2048), values(2, 8))


def test_a_magnification_added_later_leaves_the_slide_as_it_is(tmp_path: Path) -> None:
    create_lake(tmp_path / "lake", LakeConfig(tile_px=256, mpps=(0.5, 2.0)))
    trident(tmp_path / "one", "a", two_contours(), "uni")
    take(tmp_path / "lake", tmp_path / "one")
    before = open_lake(tmp_path / "lake").slides().collect()
    coarse = {"target_magnification": 5, "patch_size_level0": 2048}
    trident_patches(tmp_path / "two", "a", grid(2, 1, 2048), **coarse)
    done = take(tmp_path / "lake", tmp_path / "two")
    assert (done.new, done.tiles) == (0, {"2.0": 2})
    after = open_lake(tmp_path / "lake")
    assert after.slides().collect().equals(before)
    assert holds(after, "a", "uni", two_contours(), values(21, 8))


def test_clam_stamp_and_slide2vec_become_lakes(tmp_path: Path) -> None:
    xy, um = two_contours(), grid(3, 2, 1024)
    clam_patches(tmp_path / "clam", "a", xy)
    clam_features(tmp_path / "clam" / "F", "a", xy, values(21, 8))
    done = take(tmp_path / "lake1", tmp_path / "clam", "clam", mpp=0.5, teachers=("r50",))
    assert not done.failed
    assert holds(open_lake(tmp_path / "lake1"), "a", "r50", xy, values(21, 8))

    stamp(tmp_path / "stamp" / "virchow2-01234567", "a", um * 0.25, values(6, 8))
    assert not take(tmp_path / "lake2", tmp_path / "stamp", "stamp", level0_mpp=0.25).failed
    lake = open_lake(tmp_path / "lake2")
    # 256 um in 224 px are 1.1429 mpp; a lake's mpps go in steps of 0.005.
    assert (lake.config.tile_px, lake.config.mpps) == (224, (1.145,))
    assert lake.tiles_of(mpp=1.145)["effective_mpp"].item() == pytest.approx(256 / 224)
    assert rows_of(lake, "a", "virchow2", 1.145) == given_rows(um, values(6, 8))

    slide2vec_tiles(tmp_path / "s2v", "a", xy)
    slide2vec_features(tmp_path / "s2v", "a", values(21, 8))
    assert not take(tmp_path / "lake3", tmp_path / "s2v", "slide2vec").failed
    assert holds(open_lake(tmp_path / "lake3"), "a", "prost40m", xy, values(21, 8))
    assert open_lake(tmp_path / "lake3").slides().collect()["mpp"].item() == 0.2525


def test_files_that_say_too_little_make_no_lake(tmp_path: Path) -> None:
    for name in ("a", "b"):
        clam_patches(tmp_path / "clam", name, two_contours())
    with pytest.raises(InteropError, match=r"give --mpp, .* \(and 1 more files\)"):
        take(tmp_path / "lake", tmp_path / "clam", "clam")
    assert not (tmp_path / "lake").exists()


@pytest.mark.parametrize(
    ("file_mpps", "mpps"),
    [
        ([0.499, 0.503, 1.996, 2.012], (0.5, 2.0)),
        ([0.2525, 0.2501], (0.25,)),
        ([1.1428571], (1.145,)),
        ([0.36, 0.363], (0.36,)),
    ],
)
def test_scanners_that_differ_a_little_share_a_lakes_mpp(
    file_mpps: list[float], mpps: tuple[float, ...]
) -> None:
    assert config_for((256, mpp) for mpp in file_mpps).mpps == mpps


def test_tiles_of_two_sizes_make_no_lake(tmp_path: Path) -> None:
    trident_patches(tmp_path / "x", "a", grid(2, 2))
    trident_patches(tmp_path / "x", "b", grid(2, 2), patch_size=512)
    with pytest.raises(InteropError, match="256 px, 512 px were found; a lake holds one size"):
        take(tmp_path / "lake", tmp_path / "x")


# ---------------------------------------------------------------------- again, and more


def test_importing_twice_changes_nothing(tmp_path: Path) -> None:
    trident(tmp_path / "job", "a", two_contours(), "uni")
    take(tmp_path / "lake", tmp_path / "job")
    version = open_lake(tmp_path / "lake").version
    again = take(tmp_path / "lake", tmp_path / "job")
    assert (again.slides, again.new, again.tiles, again.features) == (1, 0, {}, {})
    assert open_lake(tmp_path / "lake").version == version


def test_later_slides_and_teachers_are_added_and_the_rest_left(tmp_path: Path) -> None:
    job, lake = tmp_path / "job", tmp_path / "lake"
    trident(job, "a", two_contours(), "uni")
    trident(job, "b", grid(3, 3), "uni")
    take(lake, job)
    trident(job, "c", grid(2, 2), "uni")
    trident(job, "a", two_contours(), "uni", "conch")
    done = take(lake, job)
    assert (done.new, done.features) == (1, {"conch at 0.5": 1, "uni at 0.5": 1})
    opened = open_lake(lake)
    assert holds(opened, "a", "conch", two_contours(), values(21, 8, 1))
    assert holds(opened, "c", "uni", grid(2, 2), values(4, 8))
    # `b` is in the fragment of `a`: its hole is filled by a file that keeps what is there.
    trident(job, "b", grid(3, 3), "uni", "conch")
    assert take(lake, job).features == {"conch at 0.5": 1}
    opened = open_lake(lake)
    assert holds(opened, "b", "conch", grid(3, 3), values(9, 8, 1))
    assert holds(opened, "a", "conch", two_contours(), values(21, 8, 1))


def test_a_file_mended_later_is_taken_then(tmp_path: Path) -> None:
    job, lake = tmp_path / "job", tmp_path / "lake"
    for name in ("a", "b", "c"):
        trident(job, name, two_contours(), "uni")
    broken = job / "20x_256px_0px_overlap" / "features_uni" / "b.h5"
    cut_short(broken)
    done = take(lake, job)
    assert done.slides == 3
    assert done.features == {"uni at 0.5": 2}
    (failed,) = done.failed
    assert (failed["slide_id"], failed["path"]) == ("b", str(broken))
    assert holds(open_lake(lake), "c", "uni", two_contours(), values(21, 8))
    with pytest.raises(LakeError, match="no features of 'uni' yet"):
        open_lake(lake).bag("b", "uni", mpp=0.5)
    trident(job, "b", two_contours(), "uni")
    assert take(lake, job).features == {"uni at 0.5": 1}
    for name in ("a", "b", "c"):
        assert holds(open_lake(lake), name, "uni", two_contours(), values(21, 8))


def test_a_slide_cut_otherwise_is_refused_and_nothing_changed(tmp_path: Path) -> None:
    trident(tmp_path / "one", "a", two_contours(), "uni")
    take(tmp_path / "lake", tmp_path / "one")
    version = open_lake(tmp_path / "lake").version
    moved = two_contours()
    moved[0] += 1
    trident(tmp_path / "two", "a", moved, "conch")
    (failed,) = take(tmp_path / "lake", tmp_path / "two").failed
    assert "its 21 tiles are not the 21 that are known of this slide (20 are" in failed["reason"]
    assert open_lake(tmp_path / "lake").version == version


def test_other_tile_size_or_mpp_than_the_lakes(tmp_path: Path) -> None:
    create_lake(tmp_path / "lake", LakeConfig(tile_px=256, mpps=(1.0,)))
    trident_patches(tmp_path / "x", "a", grid(2, 2))
    trident_patches(tmp_path / "x", "b", grid(2, 2), patch_size=512)
    reasons = {f["slide_id"]: f["reason"] for f in take(tmp_path / "lake", tmp_path / "x").failed}
    assert "tiles of 0.5 mpp; the lake has [1.0]" in reasons["a"]
    assert "tiles of 512 px; the lake holds tiles of 256 px" in reasons["b"]


def test_values_that_float16_cannot_hold_are_named(tmp_path: Path) -> None:
    large = values(4, 8)
    large[2, 1] = 70000.0
    folder = tmp_path / "job"
    trident_patches(folder, "a", grid(2, 2))
    trident_features(folder, "a", grid(2, 2), "uni", large)
    done = take(tmp_path / "lake", folder)
    lake = open_lake(tmp_path / "lake")
    tile = lake.tiles(mpp=0.5).filter((pl.col("x") == SIDE) & (pl.col("y") == 0)).collect()
    assert f"too large for float16 for tile {tile['tile_id'].item()}" in done.failed[0]["reason"]
    assert done.slides == 1
    # The file that was begun for it is gone again.
    data_folder = tmp_path / "lake" / "features" / "mpp0.5.lance" / "data"
    assert len(list(data_folder.iterdir())) == 1


def test_duplicate_places_are_named(tmp_path: Path) -> None:
    trident_patches(tmp_path / "job", "ok", grid(2, 2))
    trident_patches(tmp_path / "job", "a", np.concatenate([grid(2, 2), [[SIDE, 0]]]))
    done = take(tmp_path / "lake", tmp_path / "job")
    assert "(512, 0)" in done.failed[0]["reason"]
    assert open_lake(tmp_path / "lake").slides().collect()["slide_id"].to_list() == ["ok"]


def test_encoders_of_the_same_name_are_not_mixed(tmp_path: Path) -> None:
    trident(tmp_path / "job", "a", two_contours(), "uni")
    trident(tmp_path / "job", "b", two_contours(), "uni", dim=4)
    (failed,) = take(tmp_path / "lake", tmp_path / "job").failed
    assert failed["slide_id"] == "b"
    assert "features of 4 dimensions by" in failed["reason"]
    assert "give this folder another name" in failed["reason"]
    clam_patches(tmp_path / "clam", "a", two_contours())
    clam_features(tmp_path / "clam", "a", two_contours(), values(21, 8))
    clam_patches(tmp_path / "clam", "b", two_contours())
    clam_features(tmp_path / "clam", "b", two_contours(), values(21, 8))
    with pytest.raises(IdentityError, match=r"another identity \(differs in: imported_from\)"):
        take(tmp_path / "lake", tmp_path / "clam", "clam", mpp=0.5, teachers=("uni",))
    assert holds(open_lake(tmp_path / "lake"), "a", "uni", two_contours(), values(21, 8))


def test_features_of_others_for_slides_that_were_ingested(lake_copy: Path, tmp_path: Path) -> None:
    lake = open_lake(lake_copy)
    slide_id = lake.tiles_of(mpp=0.5)["slide_id"][2]
    before = {row["slide_id"]: row for row in lake.slides().collect().iter_rows(named=True)}
    pictures, shard = lake.pictures(slide_id), lake.tiles_of(mpp=0.5, slide_ids=[slide_id])["shard"]
    tiles = lake.tiles(mpp=0.5).filter(pl.col("slide_id") == slide_id).collect()
    xy = np.stack([tiles["x"].to_numpy(), tiles["y"].to_numpy()], 1).astype(np.int64)
    order = np.random.default_rng(0).permutation(len(xy))
    features = values(len(xy), 16)
    trident(tmp_path / "job", slide_id, xy[order])
    trident_features(
        tmp_path / "job" / "20x_256px_0px_overlap", slide_id, xy[order], "uni", features[order]
    )
    done = take(lake_copy, tmp_path / "job")
    assert (done.failed, done.new, done.features) == ([], 0, {"uni at 0.5": 1})
    after = open_lake(lake_copy)
    assert holds(after, slide_id, "uni", xy, features)
    assert after.pictures(slide_id) == pictures
    assert after.tiles_of(mpp=0.5, slide_ids=[slide_id])["shard"].equals(shard)
    now = {row["slide_id"]: row for row in after.slides().collect().iter_rows(named=True)}
    assert now == before
    others = set(after.features_of("uni", mpp=0.5)["slide_id"])
    assert others == {slide_id}


def test_stamp_takes_the_mpp_of_slides_that_the_lake_knows(lake_copy: Path, tmp_path: Path) -> None:
    lake = open_lake(lake_copy)
    row = lake.slides().filter(pl.col("state") == "ready").head(1).collect().row(0, named=True)
    tiles = lake.tiles(mpp=0.5).filter(pl.col("slide_id") == row["slide_id"]).collect()
    xy = np.stack([tiles["x"].to_numpy(), tiles["y"].to_numpy()], 1)
    attributes = {"tile_size_um": 256 * row["mpp"], "tile_size_px": 256}
    stamp(tmp_path / "s", row["slide_id"], xy * row["mpp"], values(len(xy), 8), **attributes)
    done = take(lake_copy, tmp_path / "s", "stamp")
    assert done.features == {"virchow2 at 0.5": 1}
    lake_rows = rows_of(open_lake(lake_copy), row["slide_id"], "virchow2")
    assert lake_rows == given_rows(xy, values(len(xy), 8))


# ---------------------------------------------------------------------- kills


@pytest.fixture
def large_job(tmp_path: Path) -> Path:
    """Return a job of 60 slides with two encoders."""
    for number in range(60):
        trident(tmp_path / "job", f"s{number:02}", two_contours() + number, "uni", "conch")
    return tmp_path / "job"


def kill_after(seconds: float, lake: Path, job: Path) -> None:
    """Run an import in a process of its own and end it by SIGKILL."""
    code = (
        "import sys; from featurestore.interop import importing;"
        "importing.COMMIT_SLIDES = 4; print('up', flush=True);"
        "importing.import_folder(sys.argv[1], sys.argv[2], format='trident')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lake), str(job)], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        time.sleep(seconds)
        os.kill(process.pid, signal.SIGKILL)


def check_killed(large_job: Path, lake: Path, kills: list[float]) -> None:
    for seconds in kills:
        kill_after(seconds, lake, large_job)
    done = take(lake, large_job)
    assert not done.failed
    assert done.slides == 60
    opened = open_lake(lake)
    assert verify(opened).ok
    info = opened.info()
    assert info["tiles"] == {"0.5": 60 * 21}
    assert [(f["teacher"], f["complete"]) for f in info["features"]] == [
        ("conch", True),
        ("uni", True),
    ]
    for number in (0, 31, 59):
        xy = two_contours() + number
        assert rows_of(opened, f"s{number:02}", "conch") == given_rows(xy, values(21, 8, 1))


@pytest.mark.slow
def test_an_import_killed_many_times_goes_on(large_job: Path, tmp_path: Path) -> None:
    kills = np.random.default_rng(0).uniform(0, 1.5, 4).tolist()
    check_killed(large_job, tmp_path / "lake", [0.05, 0.3, 0.6, *kills])
