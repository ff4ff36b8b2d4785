"""Streams of coarse tiles with the fine tiles under them, against a search by coordinates."""

import itertools
import json
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import (
    ColumnWriter,
    DamageError,
    Lake,
    LakeConfig,
    LakeError,
    TileBatch,
    Under,
    create_lake,
    open_lake,
)
from featurestore.read.stream_tiles import Buffer
from featurestore.tables.lance_rows import Rows
from tests.conftest import TEACHERS
from tests.worlds.training_lake import (
    DIMS,
    TILE_PX,
    add_features,
    cut,
    feature_rows,
    jpeg_of,
    register,
    row_of_cells,
)

MPPS = (0.5, 1.0, 2.0)
# Height and width of each slide's grid at the coarsest mpp; "c" has nothing at the finest.
SHAPES = {"a": (4, 3), "b": (5, 7), "c": (2, 2), "d": (1, 1), "e": (6, 4)}
UNDER: dict[float, Any] = {0.5: ["plain", "packed"], 1.0: "packed"}
SMALL: dict[str, Any] = {
    "mpp": 2.0,
    "under": UNDER,
    "batch_tiles": 8,
    "block_tiles": 3,
    "buffer_tiles": 24,
}

Cells = npt.NDArray[np.int64]


def cells_of(shape: tuple[int, int], rng: np.random.Generator) -> dict[float, Cells]:
    """Cells of the three grids, each with gaps."""
    height, width = shape
    return {
        mpp: np.argwhere(rng.random((height * n, width * n)) < 0.7)
        for mpp, n in ((0.5, 4), (1.0, 2), (2.0, 1))
    }


def made(folder: Path, *, step_px: int | None = None) -> Lake:
    """Five slides in two fragments, of which the first was scanned twice; both teachers on all."""
    lake = create_lake(folder, LakeConfig(tile_px=TILE_PX, mpps=MPPS))
    numbers = register(lake, list(SHAPES))
    rng = np.random.default_rng(0)
    cells = {name: cells_of(shape, rng) for name, shape in SHAPES.items()}
    cells["c"][0.5] = np.empty((0, 2), np.int64)
    cells["c"][2.0] = np.argwhere(np.ones((2, 2)))
    cells["d"][2.0] = np.argwhere(np.ones((1, 1)))
    old = cut(lake, numbers["a"], "a", cells_of((3, 3), rng), mark="old")

    def cuts(names: str) -> list[Any]:
        return [cut(lake, numbers[name], name, cells[name], step_px=step_px) for name in names]

    lake.committer.commit_slides([old, *cuts("bc")])
    lake.committer.commit_slides(cuts("ade"))
    for mpp in MPPS:
        add_features(lake, DIMS, mpp=mpp)
    return open_lake(folder)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return made(tmp_path_factory.mktemp("under") / "lake")


def same(a: Iterable[TileBatch], b: Iterable[TileBatch]) -> bool:
    return all(
        one.tile_id.tolist() == two.tile_id.tolist()
        and one.jpeg == two.jpeg
        and one.under.keys() == two.under.keys()
        and all(
            np.array_equal(tiles_under.mask, two.under[mpp].mask)
            and tiles_under.features.keys() == two.under[mpp].features.keys()
            and all(
                np.array_equal(x, two.under[mpp].features[name])
                for name, x in tiles_under.features.items()
            )
            for mpp, tiles_under in one.under.items()
        )
        for one, two in zip(a, b, strict=True)
    )


def keys(batches: Sequence[TileBatch]) -> list[int]:
    return [key for batch in batches for key in batch.tile_id.tolist()]


def check(lake: Lake, batch: TileBatch, mpp: float, teachers: Sequence[str]) -> Under:
    """Children of each tile are those that a search by level-0 coordinates finds, one by one."""
    table = lake.tiles(mpp=mpp).select("tile_id", "slide", "y", "x").collect()
    keys = {tuple(place): key for key, *place in table.iter_rows()}
    tiles_under, ratio = batch.under[mpp], round(batch.mpp / mpp)
    assert list(tiles_under.features) == list(teachers)
    assert tiles_under.mask.shape == (len(batch.tile_id), ratio, ratio)
    side = TILE_PX * round(mpp / 0.5)
    tiles = zip(batch.slide.tolist(), batch.y.tolist(), batch.x.tolist(), strict=True)
    for at, (slide, top, left) in enumerate(tiles):
        for row, column in itertools.product(range(ratio), range(ratio)):
            key = keys.get((slide, top + row * side, left + column * side))
            assert tiles_under.mask[at, row, column] == (key is not None)
            for name in teachers:
                expected = np.zeros((1, DIMS[name]), np.float16)
                if key is not None:
                    expected = feature_rows(np.array([key]), DIMS[name])
                np.testing.assert_array_equal(
                    tiles_under.features[name][at, row, column], expected[0]
                )
    return tiles_under


# ---------------------------------------------------------------------- what comes


def test_children_in_a_lake_of_slides_are_those_of_pairs(lake: Lake) -> None:
    """Real slides, real teachers: what `pairs` finds in whole bags."""
    stream = lake.stream(
        TEACHERS, mpp=2.0, under={0.5: TEACHERS}, batch_tiles=16, block_tiles=4, buffer_tiles=64
    )
    names = dict(lake.slides().select("slide", "slide_id").collect().iter_rows())
    pairs = {
        name: lake.pairs(name, coarse=2.0, fine=0.5, teachers=TEACHERS) for name in names.values()
    }
    given_keys = []
    for batch in stream:
        given_keys += batch.tile_id.tolist()
        tiles_under = batch.under[0.5]
        for at, (slide, key) in enumerate(
            zip(batch.slide.tolist(), batch.tile_id.tolist(), strict=True)
        ):
            pair = pairs[names[slide]]
            row = pair.coarse.tile_id.tolist().index(key)
            children, mask = pair.children[row], pair.mask[row]
            np.testing.assert_array_equal(tiles_under.mask[at], mask)
            for teacher in TEACHERS:
                coarse, fine = (bag.by_teacher[teacher] for bag in (pair.coarse, pair.fine))
                np.testing.assert_array_equal(batch.features[teacher][at], coarse[row])
                expected = np.where(mask[..., None], fine[children], 0)
                np.testing.assert_array_equal(tiles_under.features[teacher][at], expected)
    assert sorted(given_keys) == lake.tiles(mpp=2.0).collect()["tile_id"].sort().to_list()


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_tile_comes_once_with_all_tiles_under_it(three: Lake, shuffle: bool) -> None:  # noqa: FBT001
    batches = list(three.stream("plain", **SMALL, shuffle=shuffle))
    ids = three.tiles(mpp=2.0).collect().sort("tile_id")["tile_id"].to_list()
    assert (keys(batches) if not shuffle else sorted(keys(batches))) == ids
    masks = []
    for batch in batches:
        masks.append(check(three, batch, 0.5, ["plain", "packed"]).mask)
        check(three, batch, 1.0, ["packed"])
        np.testing.assert_array_equal(batch.features["plain"], feature_rows(batch.tile_id, 128))
    number = register(three, ["c"])["c"]
    of_c = np.concatenate([batch.slide for batch in batches]) == number
    all_masks = np.concatenate(masks)
    assert of_c.sum() == 4
    assert not all_masks[of_c].any()
    assert 0.5 < all_masks[~of_c].mean() < 0.9


def test_with_pixels_and_without_features_of_the_coarse_tile(three: Lake) -> None:
    plain = list(three.stream("plain", **SMALL))
    bare = list(three.stream([], **SMALL, pixels="jpeg"))
    assert keys(bare) == keys(plain)
    for batch, other in zip(bare, plain, strict=True):
        assert batch.features == {}
        assert batch.jpeg == [jpeg_of(key) for key in batch.tile_id.tolist()]
        np.testing.assert_array_equal(
            batch.under[0.5].features["plain"], other.under[0.5].features["plain"]
        )
    assert all(batch.under == {} for batch in three.stream("plain", mpp=2.0))


@pytest.mark.parametrize("parts", [2, 4])
def test_children_of_overlapping_tiles_fill_them_side_by_side(tmp_path: Path, parts: int) -> None:
    lake = made(tmp_path / "lake", step_px=TILE_PX // parts)
    batches = list(lake.stream([], **SMALL, slide_ids=["b", "d", "e"]))
    masks = [check(lake, batch, 0.5, ["plain", "packed"]).mask for batch in batches]
    assert 0.2 < np.concatenate(masks).mean() < 0.9


def test_tiles_that_a_teacher_was_not_asked_for_are_background(tmp_path: Path) -> None:
    lake = made(tmp_path / "lake")
    field = lake.committer.add_teacher(0.5, "some", 3, {"weights": "some", "share": 0.5})
    frame = lake.refreshed().tiles(mpp=0.5).select("slide", "tile_id").collect().sort("tile_id")
    files = []
    for fragment, group in lake.refreshed().tiles_of(mpp=0.5).group_by("fragment"):
        with ColumnWriter(lake.store, 0.5, field, int(str(fragment[0]))) as writer:
            for row in group.filter(pl.col("tiles") > 0).sort("row_start").iter_rows(named=True):
                writer.skip(row["row_start"] - writer.rows)
                ids = frame.filter(pl.col("slide") == row["slide"])["tile_id"].to_numpy()
                for key in ids:
                    if key % 2:
                        writer.add(row["slide"], np.array([key]), feature_rows(np.array([key]), 3))
                    else:
                        writer.absent(row["slide"], 1)
            files.append(writer.finish())
    lake.committer.commit_columns(0.5, files)
    lake = open_lake(lake.uri)
    plain = lake.stream([], mpp=2.0, under={0.5: "packed"}, shuffle=False)
    some = lake.stream([], mpp=2.0, under={0.5: ["packed", "some"]}, shuffle=False)
    for one, two in zip(plain, some, strict=True):
        mask = one.under[0.5].mask.copy()
        mask[:, :, ::2] = False  # the column is a key's last bit
        np.testing.assert_array_equal(two.under[0.5].mask, mask)
        expected = np.where(mask[..., None], one.under[0.5].features["packed"], 0)
        np.testing.assert_array_equal(two.under[0.5].features["packed"], expected)
        assert np.isfinite(two.under[0.5].features["some"]).all()
        assert (two.under[0.5].features["some"][~mask] == 0).all()


# ---------------------------------------------------------------------- order


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    threads=st.integers(2, 5),
    batch=st.integers(1, 50),
    block=st.integers(1, 9),
    buffer=st.integers(1, 60),
    shuffle=st.booleans(),
)
def test_threads_do_not_change_what_comes(
    three: Lake,
    threads: int,
    batch: int,
    block: int,
    buffer: int,
    shuffle: bool,  # noqa: FBT001
) -> None:
    def stream(threads: int) -> list[TileBatch]:
        one_stream = three.stream(
            "packed",
            mpp=2.0,
            under=UNDER,
            pixels="jpeg",
            batch_tiles=batch,
            block_tiles=block,
            buffer_tiles=buffer,
            threads=threads,
            shuffle=shuffle,
        )
        return list(one_stream)

    assert same(stream(1), stream(threads))


@pytest.mark.parametrize("given_before", range(8))
def test_a_stream_goes_on_at_the_next_batch(three: Lake, given_before: int) -> None:
    whole = three.stream("packed", **SMALL, seed=3)
    before = list(itertools.islice(whole, given_before))
    state = json.loads(json.dumps(whole.state_dict()))
    on = three.stream("packed", **SMALL, seed=3, threads=3)
    on.load_state_dict(state)
    rest = list(on)
    assert len(before) + len(rest) == whole.steps == 7
    assert same([*before, *rest], three.stream("packed", **SMALL, seed=3))


def test_a_state_of_other_tiles_under_is_refused(three: Lake) -> None:
    state = three.stream("packed", **SMALL).state_dict()
    assert set(state["settings"]["under"]) == {"0.5", "1.0"}
    without = three.stream("packed", **{**SMALL, "under": {0.5: "plain"}})
    with pytest.raises(LakeError, match="another order: under"):
        without.load_state_dict(state)
    plain = three.stream("packed", **{**SMALL, "under": None})
    assert "under" not in plain.state_dict()["settings"]
    with pytest.raises(LakeError, match=r"another order: under .* \(here None\)"):
        plain.load_state_dict(state)
    other_teachers = three.stream("packed", **{**SMALL, "under": {0.5: "plain", 1.0: "plain"}})
    other_teachers.load_state_dict(state)


def test_ranks_share_an_epoch(three: Lake) -> None:
    ranks = [list(three.stream([], **SMALL, rank=rank, world=3)) for rank in range(3)]
    assert len({len(batches) for batches in ranks}) == 1
    shared = [batch for batches in ranks for batch in batches]
    assert sorted(keys(shared)) == sorted(keys(list(three.stream([], **SMALL))))
    for batch in shared:
        check(three, batch, 0.5, ["plain", "packed"])


def test_a_stream_goes_to_another_process(three: Lake) -> None:
    stream = three.stream("packed", **SMALL)
    assert same(pickle.loads(pickle.dumps(stream)), list(stream))


def test_one_thread_reads_few_tiles_at_a_time(three: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading ahead is bounded by buffers, and only tiles that are there are held."""
    held: list[int] = []

    class Counted(Buffer):
        def take(self, start: int, stop: int) -> Rows:
            for part in self._parts:
                tiles_under = part.result().under[0.5]
                assert len(tiles_under.rows) <= self._starts.step
                assert len(tiles_under.features["plain"]) == len(
                    np.unique(tiles_under.rows[tiles_under.rows >= 0])
                )
                held.append(len(tiles_under.rows))
            return super().take(start, stop)

    monkeypatch.setattr("featurestore.read.stream.Buffer", Counted)
    monkeypatch.setattr("featurestore.read.stream_tiles.PART_ROWS_MIN", 4)
    monkeypatch.setattr("featurestore.read.stream_tiles.PART_ROWS", 80)
    batches = list(three.stream("packed", **SMALL))
    assert max(held) == 4
    monkeypatch.undo()
    assert same(batches, three.stream("packed", **SMALL))


# ---------------------------------------------------------------------- what is refused


def test_what_is_missing_is_named_before_the_run(tmp_path: Path) -> None:
    lake = made(tmp_path / "lake")
    add_features(lake, {"late": 6}, mpp=0.5, without=["b", "e"])
    lake = lake.refreshed()
    with pytest.raises(LakeError, match=r"2 of 4 slides have no features of 'late' .*: b, e"):
        lake.stream([], mpp=2.0, under={0.5: "late"})
    assert lake.stream([], mpp=2.0, under={0.5: "late"}, slide_ids=["a", "c", "d"]).tiles > 0
    with pytest.raises(LakeError, match=r"no features of 'late' at mpp 1\.0"):
        lake.stream([], mpp=2.0, under={1.0: "late"})
    with pytest.raises(LakeError, match=r"no tiles at mpp 4\.0"):
        lake.stream([], mpp=2.0, under={4.0: "plain"})
    for mpp, finer in ((0.5, 2.0), (1.0, 1.0)):
        with pytest.raises(LakeError, match="whole multiple of fine, two or more"):
            lake.stream("plain", mpp=mpp, under={finer: "plain"})
    with pytest.raises(LakeError, match="name at least one"):
        lake.stream([], mpp=2.0)
    with pytest.raises(LakeError, match="name at least one"):
        lake.stream("plain", mpp=2.0, under={0.5: []})


def test_grids_that_do_not_nest_are_refused(tmp_path: Path) -> None:
    lake = create_lake(tmp_path / "lake", LakeConfig(tile_px=TILE_PX, mpps=(0.5, 1.0)))
    numbers = register(lake, ["good", "bad"])
    cells = {0.5: row_of_cells(20), 1.0: row_of_cells(5)}
    bad = cut(lake, numbers["bad"], "bad", cells, step_px=TILE_PX - 12)
    lake.committer.commit_slides([cut(lake, numbers["good"], "good", cells), bad])
    for mpp in (0.5, 1.0):
        add_features(lake, {"packed": 6}, mpp=mpp)
    lake = lake.refreshed()
    with pytest.raises(LakeError, match=r"slide bad .* no whole part of it: they do not nest"):
        lake.stream("packed", mpp=1.0, under={0.5: "packed"})
    lake.stream("packed", mpp=1.0, under={0.5: "packed"}, slide_ids=["good"])


def test_grids_with_another_origin_are_refused(three: Lake) -> None:
    """Imported coordinates may begin anywhere: the keys nest, the tiles do not."""
    stream = three.stream([], **{**SMALL, "under": {0.5: "packed"}}, slide_ids=["b"])
    finer = stream._below[0]
    moved = tuple(replace(nested, side_px=TILE_PX + 5) for nested in finer.nestings)
    stream._below[0] = replace(finer, nestings=moved)
    with pytest.raises(LakeError, match="slide b: its grids begin at different places"):
        list(stream)


def test_a_catalog_that_names_other_rows_is_damage(three: Lake) -> None:
    stream = three.stream([], **SMALL)
    finest = stream._below[0].selection
    finest._start = finest._start[::-1].copy()
    with pytest.raises(DamageError, match=r"slide \w at mpp 0\.5: rows are not those|fragment"):
        list(stream)
