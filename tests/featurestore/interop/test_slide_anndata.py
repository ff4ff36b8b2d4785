"""A slide as an AnnData in memory: against the table, the export, and the tools that read it."""

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import polars as pl
import pytest

from featurestore import Lake, LakeError, annotate, open_lake
from featurestore.interop import InteropError, export_folder
from tests.worlds.example_lake import FIRST, SECOND, SIDE_PX, TEACHERS, make_example
from tests.worlds.training_lake import TILE_PX, add_features

SLIDE = "P000-1"


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = make_example(tmp_path_factory.mktemp("anndata") / "lake")
    tiles = lake.tiles(mpp=0.5).select("tile_id").collect().sort("tile_id").head(5)
    marks = tiles.with_columns(region=pl.Series(["T", "S", None, "T", "T"]), nuclei=pl.lit(7))
    annotate(lake, marks, "marks", mpp=0.5)
    return lake.refreshed()


def test_it_holds_what_the_table_holds(lake: Lake) -> None:
    table = lake.to_anndata(SLIDE, mpp=0.5)
    frame = lake.tiles(mpp=0.5).filter(pl.col("slide_id") == SLIDE).collect().sort("tile_id")
    assert table.shape == (12, TEACHERS[FIRST])
    assert table.X.dtype == table.obsm[f"X_{SECOND}"].dtype == np.float32
    np.testing.assert_array_equal(table.X, frame[FIRST].to_numpy().astype(np.float32))
    second = frame[SECOND].to_numpy().astype(np.float32)
    np.testing.assert_array_equal(table.obsm[f"X_{SECOND}"], second)
    for name in ("tile_id", "x", "y", "tissue"):
        np.testing.assert_array_equal(table.obs[name].to_numpy(), frame[name].to_numpy())
    assert table.obs_names.tolist() == frame["tile_id"].cast(pl.String).to_list()
    assert table.obs["marks_region"].astype(object).tolist()[:2] == ["T", "S"]
    assert table.obs["marks_region"].isna().sum() == 12 - 4
    corners = frame.select("x", "y").to_numpy()
    np.testing.assert_array_equal(table.obsm["spatial"], corners + TILE_PX / 2)
    facts = table.uns["slidelake"]
    assert (facts["teacher"], facts["version"]) == (FIRST, lake.version)
    assert json.loads(facts["annotations"]) == {"clinical": {"grade": 3}}
    assert json.loads(facts["identities"])[SECOND] == {"weights": SECOND}


def test_squidpy_and_lazyslide_find_what_they_look_for(lake: Lake) -> None:
    """Names from squidpy's and wsidata's sources; the thumbnail lies over the tiles' places."""
    table = lake.to_anndata(SLIDE, FIRST, mpp=0.5)
    [(library, facts)] = table.uns["spatial"].items()
    picture, factors = facts["images"]["hires"], facts["scalefactors"]
    assert library == SLIDE
    np.testing.assert_array_equal(picture, np.asarray(lake.thumbnail(SLIDE)))
    assert factors["spot_diameter_fullres"] == TILE_PX
    assert factors["tissue_hires_scalef"] * SIDE_PX == picture.shape[1]
    assert table.uns["tile_spec"]["mpp"] == 0.5
    properties = table.uns["slide_properties"]
    assert (properties["shape"], properties["mpp"]) == ([SIDE_PX * 3 // 4, SIDE_PX], 0.5)
    keys = table.uns["spatialdata_attrs"]
    assert set(table.obs[keys["region_key"]]) == {keys["region"]}
    assert table.obs[keys["instance_key"]].is_unique


def test_it_can_be_written_and_is_the_exports_table(lake: Lake, tmp_path: Path) -> None:
    pytest.importorskip("zarr", reason="the extra [anndata] is not installed")
    table = lake.to_anndata(SLIDE, FIRST, mpp=0.5)
    table.write_h5ad(tmp_path / "slide.h5ad")
    back = anndata.read_h5ad(tmp_path / "slide.h5ad")
    np.testing.assert_array_equal(back.X, table.X)
    assert back.obs["marks_region"].astype(object).tolist()[:2] == ["T", "S"]
    export_folder(lake.uri, tmp_path / "out", format="anndata", mpp=0.5, teachers=[FIRST])
    exported = anndata.read_zarr(tmp_path / "out" / f"{SLIDE}.zarr" / "tables" / f"{FIRST}_tiles")
    np.testing.assert_array_equal(exported.X, table.X)
    np.testing.assert_array_equal(exported.obsm["spatial"] + TILE_PX / 2, table.obsm["spatial"])
    assert exported.obs["marks_region"].tolist()[:2] == ["T", "S"]
    for name in ("identity", "annotations", "tile_px_level0"):
        assert exported.uns["slidelake"][name] == table.uns["slidelake"][name]


def test_only_what_is_there(lake: Lake, tmp_path: Path) -> None:
    bare = lake.to_anndata(SLIDE, [], mpp=0.5)
    assert (bare.X, bare.n_obs, "spatial" in bare.obsm) == (None, 12, True)
    assert list(lake.to_anndata(SLIDE, mpp=1.0).obsm) == ["spatial"]  # one teacher was run there
    other = make_example(tmp_path / "lake")
    add_features(other, {"late": 4}, without=[SLIDE])
    other = other.refreshed()
    assert list(other.to_anndata(SLIDE, mpp=0.5).obsm) == ["spatial", f"X_{SECOND}"]
    with pytest.raises(LakeError, match=f"slide '{SLIDE}' has no features of 'late' yet"):
        other.to_anndata(SLIDE, "late", mpp=0.5)
    with pytest.raises(InteropError, match=r"'P000-3' is not in .*; did you mean 'P000-2'\?"):
        lake.to_anndata("P000-3", mpp=0.5)
    with pytest.raises(LakeError, match=r"several mpps, \[0\.5, 1\.0\]; give mpp="):
        lake.to_anndata(SLIDE)


def test_without_anndata_the_extra_is_named(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *rest: Any) -> Any:  # noqa: ANN401
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(
        "featurestore.interop.writers.anndata_table.importlib.import_module", missing
    )
    with pytest.raises(InteropError, match=r"an AnnData needs 'anndata': .* extra \[anndata\]"):
        open_lake(lake.uri).to_anndata(SLIDE, mpp=0.5)
