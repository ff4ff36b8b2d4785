"""The page on reading, run as it stands; what comes out is computed again from plain Lance."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lance
import numpy as np
import numpy.typing as npt
import pytest

from tests.conftest import ROOT, TEACHERS

PAGE = ROOT / "docs" / "reading.md"
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FIRST, SECOND = TEACHERS
SLIDE = "P000-1"


@pytest.fixture(scope="module")
def names(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The names that the page's blocks leave, run one after the other in one process."""
    folder = tmp_path_factory.mktemp("reading")
    (folder / "demo-lake").symlink_to(filled)
    left: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("RANK", "WORLD_SIZE"):
            patch.delenv(name, raising=False)
        for number, code in enumerate(FENCE.findall(PAGE.read_text())):
            exec(compile(code, f"{PAGE.name} {number}", "exec"), left)
        yield left


@pytest.fixture(scope="module")
def table(filled: Path) -> dict[str, npt.NDArray[Any]]:
    """The tiles at 0.5 mpp as plain Lance reads them, by key."""
    rows = lance.dataset(str(filled / "features/mpp0.5.lance")).to_table().to_pydict()
    order = np.argsort(rows["tile_id"])
    columns = ("tile_id", "slide_id", "x", "y", "tissue", *TEACHERS)
    return {name: np.array(rows[name])[order] for name in columns}


def test_frames_and_bags(names: dict[str, Any], table: dict[str, npt.NDArray[Any]]) -> None:
    of_slide = table["slide_id"] == SLIDE
    assert names["dense"].height == min(100, int((table["tissue"] > 0.8).sum()))
    bag = names["bag"]
    both = np.concatenate([table[FIRST][of_slide], table[SECOND][of_slide]], axis=1)
    np.testing.assert_array_equal(bag.features, both)
    np.testing.assert_array_equal(bag.x, table["x"][of_slide])
    assert sum(names["sizes"].values()) == len(table["tile_id"])
    assert "P000" in names["sizes"]


def test_streams_and_pairs(names: dict[str, Any], table: dict[str, npt.NDArray[Any]]) -> None:
    batch = names["batch"]
    at = np.searchsorted(table["tile_id"], batch.tile_id)
    np.testing.assert_array_equal(batch.features[FIRST], table[FIRST][at])
    assert batch.pixels.shape == (64, 256, 256, 3)
    pairs = names["pairs"]
    assert pairs.children.shape == (len(pairs.coarse.tile_id), 4, 4)
    assert pairs.mask.sum() == len(pairs.fine.tile_id)


def test_pictures_and_means(names: dict[str, Any], table: dict[str, npt.NDArray[Any]]) -> None:
    assert names["picture"].mode == "RGB"
    assert names["picture"].width == pytest.approx(names["scale"] * names["width_px"])
    assert "P000-1" in names["lake"]._repr_html_()
    assert len(names["X"]) == len(set(table["slide_id"].tolist()))
    for slide_id, tiles, mean in names["means"].iter_rows():
        truth = table[FIRST][table["slide_id"] == slide_id].astype(np.float64)
        assert tiles == len(truth)
        np.testing.assert_allclose(mean, truth.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_anndata(names: dict[str, Any], table: dict[str, npt.NDArray[Any]]) -> None:
    of_slide, adata = table["slide_id"] == SLIDE, names["adata"]
    np.testing.assert_array_equal(adata.X, table[FIRST][of_slide].astype(np.float32))
    second = table[SECOND][of_slide].astype(np.float32)
    np.testing.assert_array_equal(adata.obsm[f"X_{SECOND}"], second)
    corners = np.stack([table["x"][of_slide], table["y"][of_slide]], axis=1)
    assert len({tuple(shift) for shift in (adata.obsm["spatial"] - corners).tolist()}) == 1
    np.testing.assert_array_equal(adata.obs["tissue"], table["tissue"][of_slide])
    scale = adata.uns["spatial"][SLIDE]["scalefactors"]["tissue_hires_scalef"]
    assert scale == pytest.approx(names["scale"])


def test_webdataset(names: dict[str, Any], table: dict[str, npt.NDArray[Any]]) -> None:
    sample = names["sample"]
    [at] = np.flatnonzero(table["tile_id"] == sample["tile_id"])
    np.testing.assert_array_equal(sample[FIRST], table[FIRST][at])
    assert (sample["slide_id"], int(sample["__key__"])) == (
        table["slide_id"][at],
        sample["tile_id"],
    )
    assert names["tiles"].tiles == len(table["tile_id"])
    shapes = tuple(names["pixels"].shape), tuple(names["features"].shape)
    assert shapes == ((64, 256, 256, 3), (64, 1280))
