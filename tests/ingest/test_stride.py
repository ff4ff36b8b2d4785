"""Overlapping tiles: from `--stride` to pixels, scores, parents and an export."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from openslide import OpenSlide

from featurestore import Lake, LakeConfig, LakeError, ShardReader, create_lake, open_lake
from featurestore.interop import export_folder
from ingest.cut import cut_slide
from ingest.grid import plan_grids, tile_sums
from ingest.readers.open_slide import open_slide
from ingest.select.new_lake_settings import settings
from ingest.select.sources import fingerprint
from ingest.survey import survey
from ingest.tile_jpeg import decode_tile
from tests.conftest import REAL_SLIDE

CONFIG = LakeConfig(tile_px=256, stride_px=96, mpps=(0.5, 2.0))


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """The real slide in tiles of 256 px, 96 px apart."""
    folder = tmp_path_factory.mktemp("stride") / "lake"
    made = create_lake(folder, CONFIG)
    uri = str(REAL_SLIDE)
    size, mark = fingerprint(uri)
    row = {"slide_id": "real", "uri": uri, "bytes": size, "fingerprint": mark}
    slide_cut = cut_slide(made.store, CONFIG, made.committer.register([row])[0])
    made.committer.commit_slides([slide_cut])
    return open_lake(folder)


def test_tiles_are_those_pixels_of_the_slide(lake: Lake) -> None:
    rows = lake.tiles(mpp=0.5).collect()
    catalog = lake.tiles_of(mpp=0.5).row(0, named=True)
    assert (catalog["tile_px_level0"], catalog["grid_px_level0"]) == (256, 96)
    assert (rows["x"] == rows["grid_x"] * 96).all()
    assert (rows["y"] == rows["grid_y"] * 96).all()
    assert rows["grid_x"].n_unique() > 12
    with OpenSlide(REAL_SLIDE) as slide, ShardReader(lake.store, catalog["shard"]) as shard:
        jpegs = dict(shard)
        assert list(jpegs) == rows["tile_id"].to_list()
        width, height = slide.dimensions
        inside = rows.filter(pl.col("x") + 256 <= width, pl.col("y") + 256 <= height)
        for row in inside.sample(20, seed=1).iter_rows(named=True):
            expected = np.asarray(slide.read_region((row["x"], row["y"]), 0, (256, 256)))[..., :3]
            ours = decode_tile(jpegs[row["tile_id"]])
            assert (
                np.abs(ours.astype(int) - expected).mean() < 4
            )  # encoded once more, at quality 90


def test_scores_are_those_of_each_tile_alone(lake: Lake) -> None:
    with open_slide(str(REAL_SLIDE)) as slide:
        slide_survey = survey(slide)
        grids = plan_grids(slide.size_px, slide.mpp, 256, {0.5: 1, 2.0: 4}, stride_px=96)
    mask = slide_survey.tissue.mask.astype(np.float32)
    for mpp, grid in grids.items():
        area = tile_sums(mask, slide_survey.scale, grid) / (grid.side_px / slide_survey.scale) ** 2
        rows = lake.tiles(mpp=mpp).collect()
        expected = area[rows["grid_y"].to_numpy(), rows["grid_x"].to_numpy()]
        np.testing.assert_allclose(rows["tissue"].to_numpy(), expected, atol=1e-4)
        # By hand for some: the mean of the mask's pixels under the tile, to a pixel of its edge.
        for row in rows.sample(10, seed=2).iter_rows(named=True):
            x, y, side = (n / slide_survey.scale for n in (row["x"], row["y"], grid.side_px))
            under = mask[round(y) : round(y + side), round(x) : round(x + side)]
            assert abs(under.sum() / side**2 - row["tissue"]) < 0.25


def test_every_tile_has_its_parent(lake: Lake) -> None:
    fine, coarse = (lake.tiles(mpp=mpp).collect() for mpp in (0.5, 2.0))
    parents = fine.select(pl.col("grid_y") // 4, pl.col("grid_x") // 4).unique()
    coarse_cells = set(coarse.select("grid_y", "grid_x").rows())
    assert set(parents.rows()) <= coarse_cells


def test_settings_of_a_stride(tmp_path: Path, lake: Lake) -> None:
    assert LakeConfig(tile_px=224, stride_px=224) == LakeConfig(tile_px=224)
    for stride_px in (0, -3, 257):
        with pytest.raises(LakeError, match="allowed are 1 to tile_px, 256"):
            LakeConfig(stride_px=stride_px)
    with pytest.raises(LakeError, match="tiles that are copied do not overlap"):
        settings(str(tmp_path / "n"), [str(REAL_SLIDE)], {}, tile_px="native", stride_px=100)
    with pytest.raises(LakeError, match="has stride_px=96, but 128 was given"):
        create_lake(lake.uri, settings(lake.uri, [], {}, stride_px=128))
    assert create_lake(lake.uri, settings(lake.uri, [], {})).config == CONFIG
    assert lake.info()["stride_px"] == 96


def test_export_names_the_overlap(lake: Lake, tmp_path: Path) -> None:
    export_folder(lake.uri, tmp_path / "out", format="trident", mpp=0.5)
    assert (tmp_path / "out" / "20x_256px_160px_overlap").is_dir()
