"""Means of features per slide: the numbers, tiles that were left out, and damage."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from featurestore import ColumnWriter, Lake, LakeError, open_lake
from featurestore.read import slide_means as module
from featurestore.tables.schema import features_table
from tests.worlds.training_lake import (
    DIMS,
    SIZES,
    add_features,
    cut,
    feature_rows,
    make,
    register,
    row_of_cells,
)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return make(tmp_path_factory.mktemp("means") / "lake")


@pytest.mark.parametrize("column", DIMS)
@pytest.mark.parametrize("part_bytes", [module.PART_BYTES, 700])
def test_means_are_numpys(
    lake: Lake, column: str, part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The truth is made from the keys alone; parts of two rows and parts of all give the same."""
    monkeypatch.setattr(module, "PART_BYTES", part_bytes)
    means = open_lake(lake.uri).slide_means(column, mpp=0.5, dtype="float64")
    assert means.columns == ["slide_id", "tiles", column]
    assert dict(means.select("slide_id", "tiles").iter_rows()) == SIZES
    tiles = lake.tiles(mpp=0.5).select("slide_id", "tile_id").collect()
    for slide_id, mean in means.select("slide_id", column).iter_rows():
        keys = tiles.filter(pl.col("slide_id") == slide_id)["tile_id"].to_numpy()
        truth = feature_rows(keys, DIMS[column]).astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(mean, truth, rtol=1e-12)


def test_type_and_choice_of_slides(lake: Lake) -> None:
    means = lake.slide_means("plain", mpp=0.5, slide_ids=["e", "b"])
    assert means["slide_id"].to_list() == ["b", "e"]
    assert means.schema["plain"] == pl.Array(pl.Float32, 128)
    exact = lake.slide_means("plain", mpp=0.5, slide_ids=["e", "b"], dtype="float64")
    np.testing.assert_allclose(means["plain"].to_numpy(), exact["plain"].to_numpy(), rtol=1e-6)


def test_tiles_that_the_teacher_left_out(tmp_path: Path) -> None:
    """Two of slide a's tiles have features, and none of slide b's."""
    lake = make(tmp_path / "lake", sizes={"a": 6, "b": 4})
    field = lake.committer.add_teacher(0.5, "some", 3, {"where": "x > 0"})
    files = []
    for fragment in lake.refreshed().table(features_table(0.5)).get_fragments():
        rows = lake.tiles_of(mpp=0.5).filter(pl.col("fragment") == fragment.fragment_id)
        with ColumnWriter(lake.store, 0.5, field, fragment.fragment_id) as writer:
            for row in rows.sort("row_start").iter_rows(named=True):
                writer.skip(row["row_start"] - writer.rows)
                frame = lake.tiles(mpp=0.5).filter(pl.col("slide") == row["slide"])
                keys = frame.collect()["tile_id"].sort().to_numpy()
                count = 2 if row["slide_id"] == "a" else 0
                writer.add(row["slide"], keys[:count], np.arange(3.0 * count).reshape(count, 3))
                writer.absent(row["slide"], len(keys) - count)
            writer.skip(fragment.physical_rows - writer.rows)
            files.append(writer.finish())
    lake.committer.commit_columns(0.5, files)
    means = lake.refreshed().slide_means("some", mpp=0.5)
    assert means.rows() == [("a", 2, [1.5, 2.5, 3.5]), ("b", 0, None)]


def test_slides_without_tissue_or_features(tmp_path: Path) -> None:
    lake = make(tmp_path / "lake", sizes={"a": 9, "b": 20})
    add_features(lake, {"late": 6}, without=["b"])
    empty = register(lake, ["empty"])["empty"]
    lake.committer.commit_slides([cut(lake, empty, "empty", {0.5: row_of_cells(0)})])
    lake = lake.refreshed()
    assert lake.slide_means("plain", mpp=0.5)["slide_id"].to_list() == ["a", "b"]
    assert lake.slide_means("late", mpp=0.5, slide_ids=["a"])["tiles"].to_list() == [9]
    with pytest.raises(LakeError, match=r"1 of 2 slides have no features of 'late'.*: b"):
        lake.slide_means("late", mpp=0.5)
    with pytest.raises(LakeError, match=r"no features of 'tissue' at mpp 0.5"):
        lake.slide_means("tissue", mpp=0.5)
    with pytest.raises(LakeError, match=r"several mpps, \[0\.5, 1\.0\]; give mpp="):
        lake.slide_means("plain")
    with pytest.raises(LakeError, match="'float16' given; means come as float32 or float64"):
        lake.slide_means("plain", mpp=0.5, dtype="float16")  # type: ignore[arg-type]
