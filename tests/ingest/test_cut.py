"""What a slide becomes: its own tiles, copied or encoded, with scores, from any of its levels."""

import io
import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest
import simplejpeg
import tifffile
from openslide import OpenSlide
from PIL import Image

from featurestore import (
    Lake,
    LakeConfig,
    LakeError,
    ShardReader,
    SlideCut,
    create_lake,
    open_lake,
)
from ingest.cut import cut_or_reason, cut_slide
from ingest.errors import InputError, SlideError
from ingest.grid import Grid, plan_grids
from ingest.native_tiles import native_tiles
from ingest.readers.open_slide import open_slide
from ingest.readers.slide_reader import ReadOptions
from ingest.select.new_lake_settings import settings
from ingest.select.slides_to_cut import dry_run
from ingest.select.sources import fingerprint, resolve
from ingest.survey import survey
from tests.conftest import REAL_SLIDE
from tests.worlds.wide_slide import write_wide_slide

MPPS = (0.5, 2.0)


def cut(folder: Path, slide: Path, config: LakeConfig, **options: object) -> tuple[Lake, SlideCut]:
    lake = create_lake(folder, config)
    size, mark = fingerprint(str(slide))
    row = {"slide": 0, "slide_id": "a", "uri": str(slide), "bytes": size, "fingerprint": mark}
    return lake, cut_slide(lake.store, config, {**row, **options})


def tiles(slide_cut: SlideCut, mpp: float) -> pl.DataFrame:
    return pl.DataFrame(slide_cut.grids[mpp].tiles)


def jpegs(lake: Lake, slide_cut: SlideCut, mpp: float) -> dict[int, bytes]:
    shard = slide_cut.grids[mpp].shard
    assert shard is not None
    with ShardReader(lake.store, shard.path) as reader:
        return dict(reader)


@pytest.fixture
def slide(cohort: Path) -> Path:
    return sorted((cohort.parent / "slides").glob("*.svs"))[0]


@pytest.mark.parametrize(("name", "tile_px"), [("real", 240), ("synthetic", 256)])
def test_copied_tiles_have_the_slides_own_pixels_in_any_decoder(
    tmp_path: Path, slide: Path, name: str, tile_px: int
) -> None:
    """The real slide's JPEGs are RGB without a word of it, the synthetic one's YCbCr 4:2:0."""
    path = REAL_SLIDE if name == "real" else slide
    config = LakeConfig(tile_px=tile_px, mpps=(0.5,), passthrough=(0.5,))
    lake, slide_cut = cut(tmp_path / "lake", path, config)
    rows = tiles(slide_cut, 0.5)
    stored = rows.filter(codec="stored")
    assert stored.height > 0.8 * rows.height
    made = jpegs(lake, slide_cut, 0.5)
    with OpenSlide(path) as whole:
        right, bottom = (n - tile_px for n in whole.dimensions)
        inside = (pl.col("x") <= right) & (pl.col("y") <= bottom)
        assert rows.filter(inside).height == stored.height
        for row in stored.iter_rows(named=True):
            expected = whole.read_region((row["x"], row["y"]), 0, (tile_px, tile_px))
            ours = simplejpeg.decode_jpeg(made[row["tile_id"]], colorspace="RGB")
            np.testing.assert_array_equal(ours, np.asarray(expected)[..., :3])
            by_pil = np.asarray(Image.open(io.BytesIO(made[row["tile_id"]])))
            assert np.abs(by_pil.astype(int) - ours).mean() < 1


def test_tiles_at_the_edge_are_encoded_with_white_beyond_the_slide(tmp_path: Path) -> None:
    config = LakeConfig(tile_px=240, mpps=(0.5,), passthrough=(0.5,), tissue_min=0.0)
    lake, slide_cut = cut(tmp_path / "lake", REAL_SLIDE, config)
    edge = tiles(slide_cut, 0.5).filter(codec="encoded")
    assert 0 < edge.height < tiles(slide_cut, 0.5).height
    made = jpegs(lake, slide_cut, 0.5)
    for row in edge.iter_rows(named=True):
        pixels = simplejpeg.decode_jpeg(made[row["tile_id"]], colorspace="RGB")
        inside = max(0, min(240, 2220 - row["x"]))
        assert (pixels[:, inside + 8 :] > 250).all()


def test_a_slide_without_such_tiles_fails_or_is_encoded_where_that_is_allowed(
    tmp_path: Path, slide: Path
) -> None:
    config = LakeConfig(tile_px=256, mpps=(0.5,), passthrough=(0.5,))
    with pytest.raises(SlideError, match=r"no JPEG tiles of 256 px at 0\.5 mpp .*--mix-codecs"):
        cut(tmp_path / "strict", REAL_SLIDE, config)
    mixed = LakeConfig(tile_px=256, mpps=(0.5,), passthrough=(0.5,), mix_codecs=True)
    _, slide_cut = cut(tmp_path / "mixed", REAL_SLIDE, mixed)
    assert tiles(slide_cut, 0.5)["codec"].unique().to_list() == ["encoded"]
    _, slide_cut = cut(tmp_path / "mixed", slide, mixed)
    assert "stored" in tiles(slide_cut, 0.5)["codec"].to_list()


def test_native_settings_are_what_most_slides_store(tmp_path: Path, slide: Path) -> None:
    both = sorted((slide.parent).glob("*.svs"))[:2]
    sources = resolve([str(REAL_SLIDE), *map(str, both)])
    native = native_tiles(sources, {0.5: 1, 2.0: 4})
    assert (native.tile_px, native.mpps) == (256, (0.5, 2.0))
    lake = str(tmp_path / "lake")
    config = settings(lake, [str(REAL_SLIDE)], {}, tile_px="native", mpps=[2.0, 0.5])
    assert (config.tile_px, config.mpps, config.passthrough) == (240, (0.5, 2.0), (0.5,))
    create_lake(lake, config)
    assert settings(lake, [str(slide)], {}, tile_px="native") == config
    with pytest.raises(InputError, match=r"--tile-px 12\.5 given"):
        settings(lake, [], {}, tile_px="12.5")
    encoded = str(tmp_path / "encoded")
    create_lake(encoded, LakeConfig())
    with pytest.raises(LakeError, match="holds encoded tiles of 256 px"):
        settings(encoded, [str(slide)], {}, tile_px="native")
    png = tmp_path / "a.tif"
    Image.new("RGB", (300, 300), "red").save(png)
    with pytest.raises(InputError, match="none of the first 1 slide has tiles at"):
        native_tiles(resolve([str(png)]), {0.5: 1}, mpp_override=0.5)


def test_levels_of_odd_sizes_are_read_at_their_own_pixels(tmp_path: Path) -> None:
    """A fourth of 5934 px is stored as 1483: openslide calls it 4.0007, and drifts from there."""
    path = write_wide_slide(tmp_path / "odd.svs", columns=1)
    with OpenSlide(path) as slide:
        assert slide.level_downsamples[1] != 4
        level0 = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    with open_slide(str(path)) as reader:
        grid = plan_grids(reader.size_px, reader.mpp, 256, {2.0: 1})[2.0]
        assert (grid.side_px, reader.stored_level(grid)) == (1024, 1)
        for y, x in ((0, 0), (2, 1), (4, 0)):
            part = level0[y * 1024 : (y + 1) * 1024, x * 1024 : (x + 1) * 1024]
            size = (part.shape[1] // 4, part.shape[0] // 4)
            expected = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
            ours = reader.tile(grid, y, x)[: size[1], : size[0]].astype(int)
            apart = {
                shift: np.abs(np.roll(expected, shift, axis=(0, 1)) - ours).mean()
                for shift in itertools.product((-1, 0, 1), repeat=2)
            }
            assert min(apart, key=lambda shift: apart[shift]) == (0, 0)
        assert (reader.name, reader.fallback) == ("tiff", None)


# ---------------------------------------------------------------------- scores


def test_scores_are_those_of_the_pixels(tmp_path: Path, slide: Path) -> None:
    lake, slide_cut = cut(tmp_path / "lake", slide, LakeConfig(mpps=MPPS))
    rows, made = tiles(slide_cut, 0.5), jpegs(lake, slide_cut, 0.5)
    inside = rows.filter(pl.col("tissue") > 0.99)
    assert inside.height > 3
    for row in inside.iter_rows(named=True):
        pixels = simplejpeg.decode_jpeg(made[row["tile_id"]], colorspace="RGB")
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).mean() / 255
        assert abs(row["brightness"] - grey) < 0.03
        assert 0 < row["saturation"] < 1
        assert row["pen"] == 0
        assert 0.05 < row["focus"] < 0.8
    coarse = tiles(slide_cut, 2.0)
    for row in coarse.iter_rows(named=True):
        is_child = (pl.col("grid_y") // 4 == row["grid_y"]) & (
            pl.col("grid_x") // 4 == row["grid_x"]
        )
        light = rows.filter(is_child)["brightness"].to_numpy()
        assert light.min() - 0.01 <= row["brightness"] <= light.max() + 0.05


def test_scores_over_nested_grids_are_those_over_each(slide: Path) -> None:
    with open_slide(str(slide), reader="openslide") as reader:
        slide_survey = survey(reader)
        grids = list(plan_grids(reader.size_px, reader.mpp, 256, {0.5: 1, 1.0: 2, 2.0: 4}).values())

        def alone(grid: Grid) -> dict[str, np.typing.NDArray[np.float32]]:
            return slide_survey.scores([grid])[0]

        for grid, scores in zip(grids, slide_survey.scores(grids), strict=True):
            assert "tissue" in scores
            for name, values in scores.items():
                np.testing.assert_allclose(values, alone(grid)[name], atol=1e-4)


def test_mpp_is_the_given_one_or_the_files_or_the_objectives(tmp_path: Path) -> None:
    def found(path: Path, mpp: float | None = None) -> tuple[float, str]:
        with open_slide(str(path), ReadOptions(mpp=mpp), reader="openslide") as reader:
            return round(reader.mpp, 4), reader.mpp_source

    assert found(REAL_SLIDE) == (0.499, "file")
    assert found(REAL_SLIDE, 0.26) == (0.26, "given")
    silent = tmp_path / "silent.svs"
    silent.write_bytes(REAL_SLIDE.read_bytes().replace(b"|MPP = ", b"|MQQ = "))
    assert found(silent) == (0.5, "objective")
    mute = tmp_path / "mute.svs"
    mute.write_bytes(silent.read_bytes().replace(b"|AppMag = ", b"|AppNag = "))
    with pytest.raises(SlideError, match="does not say its mpp, nor its objective"):
        found(mute)


def test_a_users_mask_says_what_is_tissue(tmp_path: Path) -> None:
    box = [[0, 0], [512, 0], [512, 768], [0, 768], [0, 0]]
    geometry = {"type": "Polygon", "coordinates": [box]}
    feature = {"type": "Feature", "geometry": geometry, "properties": {}}
    mask = tmp_path / "a.geojson"
    mask.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    _, slide_cut = cut(tmp_path / "lake", REAL_SLIDE, LakeConfig(), mask=str(mask))
    rows = tiles(slide_cut, 0.5)
    assert set(rows.select("grid_y", "grid_x").rows()) == {(y, x) for y in range(3) for x in (0, 1)}
    np.testing.assert_allclose(rows["tissue"], 1, atol=0.02)
    assert "a.geojson says" in slide_cut.row["why"]


# ---------------------------------------------------------------------- plans and failures


def test_dry_run_says_what_an_ingest_makes(tmp_path: Path, slide: Path) -> None:
    config = LakeConfig(mpps=MPPS)
    missing = tmp_path / "gone.svs"
    inputs = [str(slide), str(REAL_SLIDE), str(missing)]
    plan = dry_run(str(tmp_path / "lake"), inputs, config, {}, cores=2)
    assert (plan.slides, plan.sampled) == (2, 2)
    assert plan.failed == [{"slide": "gone", "reason": f"{missing} does not exist"}]
    assert not (tmp_path / "lake").exists()
    made = [cut(tmp_path / f"{n}", path, config)[1] for n, path in enumerate((slide, REAL_SLIDE))]
    for mpp, count in plan.tiles.items():
        assert count == sum(slide_cut.grids[float(mpp)].tiles.num_rows for slide_cut in made)
    shards = [grid.shard for slide_cut in made for grid in slide_cut.grids.values()]
    size = sum(shard.bytes for shard in shards if shard)
    assert 0.5 < plan.bytes / size < 1.2
    one = dry_run(str(tmp_path / "lake"), inputs, config, {"only": [REAL_SLIDE.stem]}, cores=2)
    assert (one.slides, one.failed) == (1, [])
    assert dry_run(str(tmp_path / "lake"), inputs, config, {"limit": 1}, cores=2).slides == 1
    with pytest.raises(InputError, match="name no slide nobody"):
        dry_run(str(tmp_path / "lake"), inputs, config, {"only": ["nobody"]}, cores=2)


def test_a_slide_without_tissue_fails_and_its_picture_is_kept(tmp_path: Path) -> None:
    lake = create_lake(tmp_path / "lake", LakeConfig())
    path = tmp_path / "blank.tif"
    tifffile.imwrite(path, np.full((1024, 1024, 3), 245, np.uint8), tile=(256, 256))
    (row,) = lake.committer.register([{"slide_id": "blank", "uri": str(path), "mpp": 0.5}])
    outcome = cut_or_reason(lake.store, lake.config, {**row, "fingerprint": "x"})
    assert isinstance(outcome, dict)
    lake.committer.fail([outcome])
    kept = open_lake(lake.uri).slides().collect().row(0, named=True)
    assert (kept["state"], kept["verdict"]) == ("failed", "no tissue")
    assert "no tissue found" in kept["reason"]
    picture = simplejpeg.decode_jpeg(open_lake(lake.uri).pictures("blank")["thumbnail"])
    assert picture.mean() > 240


def test_failure_is_a_row_with_one_line(tmp_path: Path) -> None:
    lake = create_lake(tmp_path / "lake", LakeConfig())
    path = tmp_path / "text.svs"
    path.write_text("not a slide")
    row = {"slide": 0, "slide_id": "a", "uri": str(path), "fingerprint": "x"}
    outcome = cut_or_reason(lake.store, lake.config, row)
    assert isinstance(outcome, dict)
    assert outcome["reason"].startswith(f"{path} is not a slide format")
