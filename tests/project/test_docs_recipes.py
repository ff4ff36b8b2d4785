"""The page of recipes, run as it stands; what its programs make is compared with plain Lance."""

import shutil
from pathlib import Path
from typing import Any

import lance
import numpy as np
import polars as pl
import pytest

from featurestore import tile_parts
from tests.conftest import ROOT
from tests.worlds.command_lines import run_words
from tests.worlds.doc_pages import blocks_of, run_page, script

PAGE = ROOT / "docs" / "recipes.md"
TEACHER = "efficientnet_lite0"
ONE = "P000-1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, filled: Path, cohort: Path) -> Path:
    """A folder with a lake of the demo's names, and its table of labels."""
    made = tmp_path_factory.mktemp("recipes")
    shutil.copytree(filled, made / "demo-lake")
    (made / "demo-lake" / "cohort").mkdir()
    shutil.copy(cohort, made / "demo-lake" / "cohort" / "cohort.csv")
    return made


def stored(folder: Path, mpp: str = "0.5") -> pl.DataFrame:
    """The tiles as plain Lance reads them."""
    table = lance.dataset(str(folder / f"demo-lake/features/mpp{mpp}.lance")).to_table()
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def rows(frame: pl.DataFrame, name: str = TEACHER) -> np.ndarray:
    return np.array(frame[name].to_list(), np.float32)


def test_recipes(
    folder: Path,
    cohort: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    # the two programs in files of their own are run below
    page = run_page(PAGE, folder, lambda words: run_words(capsys, words), scripts=False)
    names = page.names
    tiles, labels = stored(folder), pl.read_csv(cohort)
    one = tiles.filter(pl.col("slide_id") == ONE).sort("y", "x")

    np.testing.assert_array_equal(names["x_ND"].astype(np.float32), rows(one))
    assert [*map(list, names["places"])] == one.select("x", "y").to_numpy().tolist()
    both = np.concatenate([rows(one), rows(one, "efficientnet_lite1")], axis=1)
    np.testing.assert_array_equal(names["side_by_side"].astype(np.float32), both)

    _bags(names, labels)
    _streams(names, tiles)
    _pairs(names, one, stored(folder, "2.0").filter(pl.col("slide_id") == ONE).sort("y", "x"))

    means = [rows(tiles.filter(pl.col("slide_id") == s)).mean(axis=0) for s in labels["slide_id"]]
    np.testing.assert_allclose(names["X"], means, rtol=1e-4, atol=1e-5)
    assert len(names["predictions"]) == len(labels)
    for train, test in names["folds"].split(names["X"], groups=names["groups"]):
        assert not set(names["groups"][train]) & set(names["groups"][test])

    expected = (
        tiles.filter(pl.col("tissue") > 0.5)
        .join(labels, on="slide_id")
        .group_by("patient_id", "label")
        .agg(tiles=pl.len().cast(pl.Int64), focus=pl.col("focus").cast(pl.Float64).mean())
        .sort("patient_id")
    )
    assert names["sharp"].drop("focus").equals(expected.drop("focus"))
    np.testing.assert_allclose(names["sharp"]["focus"], expected["focus"], rtol=1e-5)

    counts = dict(tiles.group_by("slide_id").len().iter_rows())
    frame = names["frame"]
    assert dict(zip(frame["slide_id"], frame["tiles"], strict=True)) == counts
    np.testing.assert_array_equal(names["features"].to_numpy(), rows(one))
    assert names["features"].index.to_list() == one.select("y", "x").rows()

    adata, exported = names["adata"], names["exported"]
    np.testing.assert_array_equal(adata.X, rows(one))
    np.testing.assert_array_equal(adata.obs["focus"], one["focus"])
    np.testing.assert_array_equal(adata.obsm["spatial"], one.select("x", "y"))
    np.testing.assert_array_equal(exported.X, adata.X)
    np.testing.assert_array_equal(exported.obsm["spatial"], adata.obsm["spatial"])


def _bags(names: dict[str, Any], labels: pl.DataFrame) -> None:
    patient = dict(labels.select("slide_id", "patient_id").iter_rows())
    train, test = ({patient[s] for s in names[part]} for part in ("train_ids", "test_ids"))
    assert train.isdisjoint(test)
    assert train | test == set(patient.values())
    assert names["history"][-1] < names["history"][0]
    assert set(names["predicted"]) == set(names["test_ids"])


def _streams(names: dict[str, Any], tiles: pl.DataFrame) -> None:
    losses = names["tile_losses"]
    assert losses[-1] < losses[0]
    trained = tiles.filter(pl.col("slide_id").is_in(names["train_ids"])).height
    assert len(losses) == 2 * -(-trained // 32)
    # what the stream gave before the stop, and what the resumed one gave after it, is all, once
    first = names["batch"]  # of the last loop over a stream that was stopped
    keys = np.concatenate([first.tile_id, *names["rest"]])
    assert sorted(keys.tolist()) == sorted(tiles["tile_id"].to_list())


def _pairs(names: dict[str, Any], fine: pl.DataFrame, coarse: pl.DataFrame) -> None:
    _, _, fine_y, fine_x = tile_parts(fine["tile_id"].to_numpy())
    _, _, coarse_y, coarse_x = tile_parts(coarse["tile_id"].to_numpy())
    for n, (y, x) in enumerate(zip(coarse_y, coarse_x, strict=True)):
        under = rows(fine)[(fine_y // 4 == y) & (fine_x // 4 == x)]
        expected = under.mean(axis=0) if len(under) else np.zeros(under.shape[1])
        np.testing.assert_allclose(names["mean_ND"][n], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(names["multi_ND"][:, :1280], rows(coarse))


@pytest.mark.slow
@pytest.mark.parametrize("title", ["train_bags.py", "train_lightning.py"])
def test_programs_of_the_page(folder: Path, title: str) -> None:
    [block] = [block for block in blocks_of(PAGE) if block.title == title]
    (folder / title).write_text(block.code)
    output = script([title], folder).stdout
    if title == "train_bags.py":
        tiles = stored(folder).height
        assert [f"epoch {n}: 7 slides, {tiles} tiles" in output for n in (0, 1)] == [True, True]
    else:
        assert "val_loss " in output
