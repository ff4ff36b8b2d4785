"""Coarse tiles and the fine tiles under them, against a search by level-0 coordinates."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from featurestore import Bag, Lake, LakeConfig, LakeError, create_lake, tile_ids
from featurestore.read.pairs import children_of
from tests.worlds.training_lake import TILE_PX, add_features, cut, register

Cells = npt.NDArray[np.int64]


def searched(coarse: Bag, fine: Bag, ratio: int, side_px: int) -> Cells:
    """Return the children of each tile by a search of level-0 coordinates."""
    rows = {
        (y, x): row for row, (y, x) in enumerate(zip(fine.y.tolist(), fine.x.tolist(), strict=True))
    }
    children = np.full((len(coarse.x), ratio, ratio), -1)
    for tile, (top, left) in enumerate(zip(coarse.y.tolist(), coarse.x.tolist(), strict=True)):
        for i in range(ratio):
            for j in range(ratio):
                children[tile, i, j] = rows.get((top + i * side_px, left + j * side_px), -1)
    return children


MASKS = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(2, 4)).flatmap(
    lambda shape: st.tuples(
        arrays.arrays(bool, shape[:2]),
        arrays.arrays(bool, (shape[0] * shape[2], shape[1] * shape[2])),
        st.just(shape[2]),
    )
)


def keys_of(mask: npt.NDArray[np.bool_], mpp: float) -> Cells:
    at = np.argwhere(mask)
    return tile_ids(3, mpp, at[:, 0], at[:, 1])


@settings(deadline=None)
@given(MASKS)
def test_children_are_those_that_a_search_finds(
    masks: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], int],
) -> None:
    """Also where a coarse tile is absent, a fine one has no parent, or there is none at all."""
    above, below, ratio = masks
    bags = [
        Bag(
            slide_id="s",
            tile_id=keys_of(mask, mpp),
            x=(np.argwhere(mask)[:, 1] * side).astype(np.int32),
            y=(np.argwhere(mask)[:, 0] * side).astype(np.int32),
            by_teacher={},
        )
        for mask, mpp, side in ((above, 0.5 * ratio, 7 * ratio), (below, 0.5, 7))
    ]
    children = children_of(bags[0].tile_id, bags[1].tile_id, ratio)
    np.testing.assert_array_equal(children, searched(bags[0], bags[1], ratio, 7))


@pytest.fixture
def make_lake(tmp_path: Path) -> Callable[..., Lake]:
    """Return a lake of one slide at 0.5, 1.0 and 1.5 mpp."""

    def make(step_px: int | None = None) -> Lake:
        lake = create_lake(tmp_path / "lake", LakeConfig(tile_px=TILE_PX, mpps=(0.5, 1.0, 1.5)))
        number = register(lake, ["s"])["s"]
        rng = np.random.default_rng(0)
        cells = {
            mpp: np.argwhere(rng.random((12 // step, 18 // step)) < 0.7)
            for step, mpp in enumerate(lake.config.mpps, start=1)
        }
        lake.committer.commit_slides([cut(lake, number, "s", cells, step_px=step_px)])
        for mpp in lake.config.mpps:
            add_features(lake, {"t": 6, "u": 4}, mpp=mpp)
        return lake.refreshed()

    return make


@pytest.mark.parametrize(("coarse", "ratio"), [(1.0, 2), (1.5, 3)])
def test_pairs_of_a_lake(make_lake: Callable[..., Lake], coarse: float, ratio: int) -> None:
    lake = make_lake()
    pairs = lake.pairs("s", coarse=coarse, fine=0.5, teachers=["t", "u"])
    for bag, mpp in ((pairs.coarse, coarse), (pairs.fine, 0.5)):
        np.testing.assert_array_equal(bag.features, lake.bag("s", ["t", "u"], mpp=mpp).features)
    expected = searched(pairs.coarse, pairs.fine, ratio, TILE_PX)
    np.testing.assert_array_equal(pairs.children, expected)
    np.testing.assert_array_equal(pairs.mask, expected >= 0)
    assert pairs.children.shape == (len(pairs.coarse.x), ratio, ratio)
    assert 0 < pairs.mask.mean() < 1


def test_grids_that_do_not_nest_are_refused(make_lake: Callable[..., Lake]) -> None:
    lake = make_lake()
    for coarse, fine in ((1.5, 1.0), (0.5, 1.0), (0.5, 0.5)):
        with pytest.raises(LakeError, match="whole multiple of fine, two or more"):
            lake.pairs("s", coarse=coarse, fine=fine, teachers="t")
    with pytest.raises(LakeError, match=r"no tiles at mpp 4\.0"):
        lake.pairs("s", coarse=4.0, fine=0.5, teachers="t")
    with pytest.raises(LakeError, match=r"slide 'ss' is not in .* at mpp 1\.0; did you mean 's'\?"):
        lake.pairs("ss", coarse=1.0, fine=0.5, teachers="t")


@pytest.mark.parametrize("parts", [2, 4])
def test_children_of_overlapping_tiles_fill_them_side_by_side(
    make_lake: Callable[..., Lake], parts: int
) -> None:
    lake = make_lake(step_px=TILE_PX // parts)
    pairs = lake.pairs("s", coarse=1.0, fine=0.5, teachers="t")
    np.testing.assert_array_equal(pairs.children, searched(pairs.coarse, pairs.fine, 2, TILE_PX))
    assert 0 < pairs.mask.mean() < 1


def test_tiles_whose_step_is_no_whole_part_of_them_are_refused(
    make_lake: Callable[..., Lake],
) -> None:
    lake = make_lake(step_px=TILE_PX - 12)
    with pytest.raises(LakeError, match="tiles of 64 level-0 px lie 40 px apart, which is no"):
        lake.pairs("s", coarse=1.0, fine=0.5, teachers="t")


def changed(lake: Lake, monkeypatch: pytest.MonkeyPatch, mpp: float, **columns: int) -> None:
    """Change the sizes of tiles at one mpp in the catalog."""
    import polars as pl

    plain = Lake.tiles_of

    def tiles_of(self: Lake, *, mpp: float, slide_ids: list[str] | None = None) -> pl.DataFrame:
        rows = plain(self, mpp=mpp, slide_ids=slide_ids)
        new_columns = [
            pl.lit(value, rows.schema[name]).alias(name) for name, value in columns.items()
        ]
        return rows.with_columns(new_columns) if mpp == changed_mpp else rows

    changed_mpp = mpp
    monkeypatch.setattr(Lake, "tiles_of", tiles_of)


def test_level0_sizes_must_be_in_the_ratio(
    make_lake: Callable[..., Lake], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slide's own mpp may differ from the lake's, and each grid is then rounded."""
    lake = make_lake()
    changed(lake, monkeypatch, 1.0, grid_px_level0=65, tile_px_level0=65)
    with pytest.raises(LakeError, match=r"65 level-0 px apart at mpp 1\.0 and 32 at 0\.5"):
        lake.pairs("s", coarse=1.0, fine=0.5, teachers="t")


def test_grids_with_another_origin_are_refused(
    make_lake: Callable[..., Lake], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Imported coordinates may begin anywhere: the keys nest, the tiles do not."""
    lake = make_lake()
    plain = Lake.bag

    def moved(self: Lake, slide_id: str, teachers: list[str], *, mpp: float) -> Bag:
        bag = plain(self, slide_id, teachers, mpp=mpp)
        return Bag(**{**vars(bag), "x": bag.x + 5}) if mpp == 0.5 else bag

    monkeypatch.setattr(Lake, "bag", moved)
    with pytest.raises(LakeError, match="begin at different places and do not nest"):
        lake.pairs("s", coarse=1.0, fine=0.5, teachers="t")
