"""Slides into a lake, through real openslide, Ray, Lance and WebDataset."""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lance
import numpy as np
import openslide
import polars as pl
import pytest
import tifffile
from PIL import Image

from featurestore import Lake, open_lake
from ingest.grid import plan_grids
from ingest.ray_ingest import IngestResult, ingest
from ingest.readers.open_slide import open_slide
from ingest.tile_jpeg import encode_tile
from tests.conftest import CONFIG, REAL_SLIDE, ROOT, shard_samples


def run(lake: Path, *inputs: Path, **options: object) -> IngestResult:
    return ingest(str(lake), [str(path) for path in inputs], CONFIG, **options)  # type: ignore[arg-type]


def test_tiles_are_the_slides_pixels(lake: Lake) -> None:
    rows = lake.tiles(mpp=0.5).filter(pl.col("slide_id") == REAL_SLIDE.stem).collect()
    catalog = (
        lake.tiles_of(mpp=0.5).filter(pl.col("slide_id") == REAL_SLIDE.stem).row(0, named=True)
    )
    samples = shard_samples(lake.store.path(catalog["shard"]))
    assert sorted(samples) == rows["tile_id"].to_list()
    slide = openslide.OpenSlide(REAL_SLIDE)
    for row in rows.sample(5, seed=0).iter_rows(named=True):
        sample = samples[row["tile_id"]]
        box = slide.read_region((row["x"], row["y"]), 0, (256, 256))
        white = Image.new("RGBA", box.size, "white")
        pixels = np.asarray(Image.alpha_composite(white, box).convert("RGB"))
        assert sample["jpg"] == encode_tile(pixels, lake.config)
        decoded = np.asarray(Image.open(io.BytesIO(sample["jpg"])), np.float64)
        assert np.abs(decoded - pixels).mean() < 2
        sample_json = json.loads(sample["json"])
        assert (sample_json["x"], sample_json["y"]) == (row["x"], row["y"])
        assert sample_json["slide_id"] == REAL_SLIDE.stem
    slide.close()


def test_lance_polars_and_webdataset_read_a_lake_without_us(filled: Path) -> None:
    code = f"""
import sys, lance, polars as pl, webdataset as wds
table = lance.dataset({str(filled / "features" / "mpp0.5.lance")!r})
frame = pl.DataFrame(table.to_table(columns=["tile_id", "slide_id", "efficientnet_lite0"]))
assert frame.schema["efficientnet_lite0"] == pl.Array(pl.Float16, 1280)
assert frame["tile_id"].is_unique().all() and frame.null_count().sum_horizontal()[0] == 0
slides = pl.DataFrame(lance.dataset({str(filled / "slides.lance")!r}).to_table())
assert set(slides["state"]) == {{"ready"}}
shards = pl.DataFrame(lance.dataset({str(filled / "catalog.lance")!r}).to_table())["shard"]
sample = next(iter(wds.WebDataset("{filled}/" + shards.drop_nulls()[0], shardshuffle=False)))
assert sample["jpg"][:2] == bytes([255, 216]) and "slide_id" in sample["json"].decode()
assert not {{"featurestore", "ingest", "slidelake"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=filled)


def test_grids_nest_in_the_lake(lake: Lake) -> None:
    fine, coarse = (lake.tiles(mpp=mpp).collect() for mpp in (0.5, 2.0))
    parents = fine.select("slide", gy=pl.col("grid_y") // 4, gx=pl.col("grid_x") // 4).unique()
    coarse_cells = coarse.select("slide", gy="grid_y", gx="grid_x")
    assert parents.join(coarse_cells, on=["slide", "gy", "gx"], how="anti").height == 0
    sides = (
        lake.catalog()
        .collect()
        .filter(pl.col("teacher").is_null())
        .pivot(on="mpp", index="slide", values="tile_px_level0")
    )
    assert (sides["2.0"] == 4 * sides["0.5"]).all()


def test_second_run_does_nothing_and_needs_no_ray(
    lake_copy: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_lake(lake_copy).version
    monkeypatch.setattr("ingest.ray_ingest.ray_session", None)
    result = run(lake_copy, cohort, REAL_SLIDE)
    assert (result.ready, result.new, result.failed) == (7, 0, [])
    assert open_lake(lake_copy).version == before


@pytest.fixture
def bad_inputs(tmp_path: Path) -> list[Path]:
    """A missing path, a text named .svs, a truncated slide, one without mpp, one of glass alone."""
    folder = tmp_path / "slides"
    folder.mkdir()
    (folder / "text.svs").write_text("this is no slide")
    (folder / "short.svs").write_bytes(REAL_SLIDE.read_bytes()[:900_000])
    (folder / "empty.svs").write_bytes(b"")
    pixels = np.full((600, 600, 3), 243, np.uint8)
    tifffile.imwrite(folder / "glass.tiff", pixels, tile=(256, 256), photometric="rgb",
                     resolution=(20_000, 20_000), resolutionunit="CENTIMETER")  # fmt: skip
    tifffile.imwrite(folder / "no_mpp.tiff", pixels, tile=(256, 256), photometric="rgb")
    good = folder / "good.svs"
    shutil.copyfile(REAL_SLIDE, good)
    return [folder / "missing.svs", *sorted(folder.iterdir())]


@pytest.mark.usefixtures("ray_up")
def test_bad_input_is_named_and_the_others_go_on(tmp_path: Path, bad_inputs: list[Path]) -> None:
    lake = tmp_path / "lake"
    result = run(lake, *bad_inputs)
    reasons = {entry["slide"]: entry["reason"] for entry in result.failed}
    assert result.ready == 1
    assert set(reasons) == {"missing", "text", "short", "empty", "no_mpp", "glass"}
    assert "does not exist" in reasons["missing"]
    assert "not a slide format that openslide reads" in reasons["text"]
    assert "is empty: it is not a slide" in reasons["empty"]
    assert "is cut off" in reasons["short"]
    assert "does not say its mpp" in reasons["no_mpp"]
    assert "no tissue" in reasons["glass"]
    assert not any("\n" in reason for reason in reasons.values())
    rows = open_lake(lake).slides().select("slide_id", "state", "reason").collect()
    assert dict(
        rows.filter(pl.col("state") == "failed").select("slide_id", "reason").iter_rows()
    ) == (reasons)
    again = run(lake, *bad_inputs)
    assert (again.ready, again.new, len(again.failed)) == (1, 0, 6)
    mended = run(lake, *bad_inputs, retry_failed=True, mpp_override=0.5)
    assert mended.new == 5
    assert "no tissue" in {f["slide"]: f["reason"] for f in mended.failed}["no_mpp"]


@pytest.mark.usefixtures("ray_up")
def test_slide_that_is_not_read_natively_is_said_and_counted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with open_slide(str(REAL_SLIDE), reader="openslide") as slide:
        grid = plan_grids(slide.size_px, slide.mpp, 1024, {0.5: 1})[0.5]
        tissue = slide.tile(grid, 0, 0)
    tifffile.imwrite(tmp_path / "lzw.tiff", tissue, tile=(256, 256), photometric="rgb",
                     compression="zlib", resolution=(20_000, 20_000),
                     resolutionunit="CENTIMETER")  # fmt: skip
    result = run(tmp_path / "lake", tmp_path / "lzw.tiff", REAL_SLIDE)
    assert (result.ready, result.readers) == (2, {"openslide": 1, "tiff": 1})
    assert "lzw: read by openslide, since its tiles are not 8-bit" in capfd.readouterr().err


def test_another_file_under_a_known_name_is_refused(lake_copy: Path, tmp_path: Path) -> None:
    other = tmp_path / REAL_SLIDE.name
    other.write_bytes(REAL_SLIDE.read_bytes() + b"\0")
    result = run(lake_copy, other)
    assert "is not the file that was ingested" in result.failed[0]["reason"]
    assert result.ready == 1


@pytest.mark.usefixtures("ray_up")
def test_slide_that_was_scanned_again_is_replaced_and_the_old_scan_stays_readable(
    tmp_path: Path,
) -> None:
    slide = tmp_path / "s.svs"
    shutil.copyfile(REAL_SLIDE, slide)
    run(tmp_path / "lake", slide)
    old = open_lake(tmp_path / "lake")
    slide.write_bytes(b"not a slide")
    broken = run(tmp_path / "lake", slide)
    assert "the earlier scan stays" in broken.failed[0]["reason"]
    assert (broken.ready, broken.replaced) == (1, [])
    slide.write_bytes(REAL_SLIDE.read_bytes() + b"scanned again")
    again = run(tmp_path / "lake", slide)
    assert (again.ready, again.failed, again.replaced) == (1, [], ["s"])
    new = open_lake(tmp_path / "lake")
    shards = [lake.tiles_of(mpp=0.5)["shard"].to_list() for lake in (old, new)]
    assert len(shards[0]) == len(shards[1]) == 1
    assert shards[0] != shards[1]
    assert new.tiles(mpp=0.5).collect().equals(old.tiles(mpp=0.5).collect())
    fingerprints = [lake.slides().collect()["fingerprint"][0] for lake in (old, new)]
    assert fingerprints[0] != fingerprints[1]
    assert run(tmp_path / "lake", slide).new == 0


def test_outside_of_a_slide_is_white() -> None:
    with open_slide(str(REAL_SLIDE), reader="openslide") as slide:
        grid = plan_grids(slide.size_px, slide.mpp, 256, {0.5: 1})[0.5]
        tile = slide.tile(grid, grid.height - 1, grid.width - 1)
        inside_x = slide.size_px[0] - (grid.width - 1) * 256
    assert (tile[:, inside_x:] == 255).all()


def test_overview_in_strips_is_the_whole_slide(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_slide(str(REAL_SLIDE), reader="openslide") as slide:
        whole, scale = slide.overview(8.0)
        monkeypatch.setattr("ingest.readers.level_reader.BLOCK_PX", 320)
        strips, _ = slide.overview(8.0)
    assert scale == 16
    assert whole.shape[:2] == (186, 139)
    np.testing.assert_array_equal(whole, strips)


# ---------------------------------------------------------------------- killed


def contents(lake: Path) -> dict[str, object]:
    """Everything that an undisturbed run and a killed and resumed one must agree on."""
    outcome: dict[str, object] = {}
    opened = open_lake(lake)
    for mpp in opened.config.mpps:
        frame = opened.tiles(mpp=mpp).collect().drop("slide").sort("slide_id", "y", "x")
        outcome[f"rows {mpp}"] = frame.drop("tile_id").rows()
        for row in opened.tiles_of(mpp=mpp).iter_rows(named=True):
            outcome[f"{row['slide_id']} {mpp}"] = row["shard_crc32"]
    outcome["raw"] = {
        mpp: lance.dataset(str(lake / "features" / f"mpp{mpp}.lance")).count_rows()
        for mpp in (0.5, 2.0)
    }
    outcome["slides"] = opened.info()["slides"]
    return outcome


def start_ingest(lake: Path, cohort: Path) -> subprocess.Popen[bytes]:
    code = (
        "import sys\nfrom ingest.ray_ingest import ingest\nfrom featurestore import LakeConfig\n"
        "ingest(sys.argv[1], [sys.argv[2]], LakeConfig(mpps=(0.5, 2.0)), commit_slides=1)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(lake), str(cohort)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill_ingest(lake: Path, cohort: Path, after_s: float) -> bool:
    """Kill an ingest some time after its first sign of life; whether it was still running."""
    process = start_ingest(lake, cohort)
    deadline = time.monotonic() + 120
    while not (lake / "tiles").exists() and process.poll() is None:
        assert time.monotonic() < deadline, "the ingest never began"
        time.sleep(0.02)
    time.sleep(after_s)
    running = process.poll() is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return running


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.usefixtures("ray_up")
def test_ingest_killed_again_and_again_ends_the_same(tmp_path: Path, cohort: Path) -> None:
    """Three kills of one lake: the first early, the others anywhere up to the last commit."""
    seed = random.randrange(1000)
    chance = random.Random(seed)
    hits = [
        kill_ingest(tmp_path / "killed", cohort, chance.uniform(0.0, most))
        for most in (0.5, 2.0, 3.0)
    ]
    assert any(hits)
    result = run(tmp_path / "killed", cohort, commit_slides=1)
    assert result.ready == 6
    run(tmp_path / "whole", cohort)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole"), (seed, hits)
