"""The nearest tiles of a lake, exactly and by an index, against scikit-learn on all features."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from sklearn.neighbors import NearestNeighbors

from featurestore import (
    ColumnWriter,
    DamageError,
    Lake,
    LakeConfig,
    LakeError,
    Store,
    build_index,
    compact,
    create_lake,
    index_state,
    matrix,
    open_lake,
    vacuum,
    verify,
)
from featurestore.query import lance_nearest
from featurestore.storage.lock import live_writers
from featurestore.tables.schema import features_table
from tests.worlds import small_lake
from tests.worlds.small_lake import add_slides, add_teacher, write_columns

TEACHER = "t:cls+mean@L12"
DIM = 32
K = 10
LEAST = 256

Floats = npt.NDArray[np.float64]


def blobs(tile_id: npt.NDArray[np.int64], dim: int, teacher: str = "t") -> npt.NDArray[np.float32]:
    """Features [N, dim] in forty groups; a function of the keys alone."""
    rows = []
    for key in tile_id.tolist():
        centre = np.random.default_rng(key % 40).normal(size=dim)
        rows.append(centre + 0.5 * np.random.default_rng(key).normal(size=dim))
    return np.array(rows, np.float32)


def other_blobs(
    tile_id: npt.NDArray[np.int64], dim: int, teacher: str = "t"
) -> npt.NDArray[np.float32]:
    """Features of another teacher."""
    return blobs(tile_id + 7, dim)[:, ::-1].copy()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a lake of 1,200 tiles in two fragments with one teacher, without an index."""
    folder = tmp_path_factory.mktemp("search") / "lake"
    lake = create_lake(folder, LakeConfig(mpps=(0.5,)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_lake, "values_of", blobs)
        add_slides(lake, {f"a{i}": 100 for i in range(6)})
        add_slides(lake, {f"b{i}": 100 for i in range(6)})
        add_teacher(lake.refreshed(), TEACHER, DIM)
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """Return a copy of that lake, to be changed."""
    monkeypatch.setattr(small_lake, "values_of", blobs)
    shutil.copytree(made, tmp_path / "lake")
    return open_lake(tmp_path / "lake")


def indexed(lake: Lake) -> Lake:
    build_index(lake, TEACHER, mpp=0.5, least_rows=LEAST)
    return lake.refreshed()


def queries(n: int = 30) -> npt.NDArray[np.float16]:
    return np.random.default_rng(5).normal(size=(n, DIM)).astype(np.float16)


def truth(
    lake: Lake, query: npt.NDArray[np.float16], slides: Sequence[str] | None = None
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Keys and cosine distances [Q, K] of the nearest tiles, by scikit-learn in float64."""
    frame = lake.features(TEACHER, mpp=0.5).collect()
    if slides is not None:
        frame = frame.filter(pl.col("slide_id").is_in(slides))
    frame = frame.filter(pl.col(TEACHER).is_not_null())
    x = matrix(frame[TEACHER].to_arrow()).astype(np.float64)
    good = np.isfinite(x).all(1) & x.any(1)
    near = NearestNeighbors(n_neighbors=K, metric="cosine", algorithm="brute").fit(x[good])
    distance, row = near.kneighbors(query.astype(np.float64))
    return frame["tile_id"].to_numpy()[good][row], distance


def recall(lake: Lake, *, exact: bool = False) -> float:
    """Share of the true neighbours that the lake finds; distances must be right in any case."""
    query = queries()
    keys, distance = truth(lake, query)
    neighbours = lake.nearest(query, TEACHER, mpp=0.5, k=K, exact=exact)
    assert neighbours.columns == ["query", "slide_id", "tile_id", "x", "y", "distance"]
    shares = []
    for number, true_keys in enumerate(keys):
        query_neighbours = neighbours.filter(pl.col("query") == number)
        assert query_neighbours["tile_id"].n_unique() == K
        shares.append(len(set(true_keys) & set(query_neighbours["tile_id"])) / K)
        at = dict(zip(true_keys, distance[number], strict=True))
        for key, d in query_neighbours.select("tile_id", "distance").iter_rows():
            assert d == pytest.approx(at.get(key, d), abs=1e-6)
        assert query_neighbours["distance"].is_sorted()
    return float(np.mean(shares))


def state_of(lake: Lake) -> tuple[int, int]:
    state = index_state(lake, TEACHER, mpp=0.5)
    return state.indexed, state.tiles


# ---------------------------------------------------------------------- without an index


def test_exact_search_finds_what_scikit_learn_finds(world: Lake) -> None:
    assert recall(world) == recall(world, exact=True) == 1
    query = queries(1)[0]
    keys, distance = truth(world, query[None])
    neighbours = world.nearest(query, TEACHER, mpp=0.5, k=K)
    assert neighbours["tile_id"].to_list() == keys[0].tolist()
    np.testing.assert_allclose(neighbours["distance"], distance[0], atol=1e-6)
    bag = world.bag(neighbours["slide_id"][0], TEACHER, mpp=0.5)
    at = bag.tile_id.tolist().index(neighbours["tile_id"][0])
    assert (bag.x[at], bag.y[at]) == (neighbours["x"][0], neighbours["y"][0])


def test_only_the_direction_of_a_query_counts(world: Lake) -> None:
    query = queries(1)[0].astype(np.float64)
    neighbours = world.nearest(query, TEACHER, mpp=0.5)
    for factor, error in ((2.0**-40, 0), (2.0**40, 0), (1e-9, 1e-4), (3.7, 1e-4)):
        again = world.nearest(query * factor, TEACHER, mpp=0.5)
        assert again["tile_id"].to_list() == neighbours["tile_id"].to_list()
        # Queries are rounded to float16, so other factors than powers of two move them a little.
        np.testing.assert_allclose(again["distance"], neighbours["distance"], rtol=0, atol=error)


def test_a_tile_is_nearest_to_itself(world: Lake) -> None:
    bag = world.bag("b3", TEACHER, mpp=0.5)
    for lake in (world, indexed(world)):
        neighbours = lake.nearest(bag.features[:7], TEACHER, mpp=0.5, k=1)
        assert neighbours["tile_id"].to_list() == bag.tile_id[:7].tolist()
        np.testing.assert_allclose(neighbours["distance"], 0, atol=1e-6)


@pytest.mark.parametrize("with_index", [False, True])
def test_slides_can_be_chosen_and_left_out(world: Lake, *, with_index: bool) -> None:
    lake = indexed(world) if with_index else world
    query = queries(1)
    keys, _ = truth(lake, query, ["a1", "b4"])
    neighbours = lake.nearest(query, TEACHER, mpp=0.5, k=K, slide_ids=["a1", "b4"])
    assert set(neighbours["tile_id"]) == set(keys[0])
    rest = [f"{letter}{i}" for letter in "ab" for i in range(6) if f"{letter}{i}" != "a1"]
    keys, _ = truth(lake, query, rest)
    neighbours = lake.nearest(query, TEACHER, mpp=0.5, k=K, without=["a1"])
    assert set(neighbours["tile_id"]) == set(keys[0])
    both = lake.nearest(query, TEACHER, mpp=0.5, slide_ids=["a1", "b4"], without=["a1"])
    assert set(both["slide_id"]) == {"b4"}
    assert lake.nearest(query, TEACHER, mpp=0.5, slide_ids=[]).is_empty()


@pytest.mark.parametrize("with_index", [False, True])
def test_tiles_without_features_are_never_found(world: Lake, *, with_index: bool) -> None:
    lake = add_slides(world, {"nan": 100, "zero": 100})
    lake = add_slides(lake, {"null": 100})
    field = lake.committer.add_teacher(0.5, TEACHER, DIM, {"weights": TEACHER})
    rows = lake.tiles_of(mpp=0.5, slide_ids=["nan", "zero"]).sort("row_start").to_dicts()
    writer = ColumnWriter(lake.store, 0.5, field, rows[0]["fragment"])
    writer.absent(rows[0]["slide"], 100)
    writer.add(rows[1]["slide"], np.arange(100), np.zeros((100, DIM)))
    lake.committer.commit_columns(0.5, [writer.finish()])
    lake = indexed(lake) if with_index else lake.refreshed()
    neighbours = lake.nearest(queries(1), TEACHER, mpp=0.5, k=1500)
    assert neighbours.height == 1200
    assert not neighbours["distance"].is_nan().any()
    assert not set(neighbours["slide_id"]) & {"nan", "zero", "null"}
    assert lake.nearest(queries(1), TEACHER, mpp=0.5, slide_ids=["nan", "zero"]).is_empty()
    assert recall(lake, exact=True) == 1


def test_wrong_questions_are_refused(world: Lake) -> None:
    query = queries(1)[0]
    with pytest.raises(LakeError, match=r"no features of 'u' at mpp 0\.5"):
        world.nearest(query, "u", mpp=0.5)
    with pytest.raises(LakeError, match=r"shape \(31,\) was given; features of .* have 32"):
        world.nearest(query[1:], TEACHER, mpp=0.5)
    with pytest.raises(LakeError, match="zeros alone"):
        world.nearest(query * 0, TEACHER, mpp=0.5)
    with pytest.raises(LakeError, match="not finite"):
        world.nearest(query * np.nan, TEACHER, mpp=0.5)
    with pytest.raises(LakeError, match="k is 0;"):
        world.nearest(query, TEACHER, mpp=0.5, k=0)
    with pytest.raises(LakeError, match=r"slide 'a11' is not in .* did you mean 'a1'"):
        world.nearest(query, TEACHER, mpp=0.5, without=["a0", "a11"])


# ---------------------------------------------------------------------- with an index


def test_index_covers_all_and_finds_nearly_all(world: Lake) -> None:
    lake = indexed(world)
    state = index_state(lake, TEACHER, mpp=0.5)
    assert state.complete
    assert state.bytes > 0
    assert (state.indexed, state.tiles) == (1200, 1200)
    assert recall(lake) >= 0.95
    assert recall(lake, exact=True) == 1
    assert verify(lake).ok
    assert not index_state(world, TEACHER, mpp=0.5).complete
    assert recall(world) == 1


def test_features_of_any_width_are_indexed(world: Lake) -> None:
    lake = add_teacher(world, "narrow", 13)
    assert build_index(lake, "narrow", mpp=0.5, least_rows=LEAST).complete
    lake = lake.refreshed()
    bag = lake.bag("b2", "narrow", mpp=0.5)
    neighbours = lake.nearest(bag.features, "narrow", mpp=0.5, k=1)
    assert neighbours["tile_id"].to_list() == bag.tile_id.tolist()
    assert lake.nearest(queries(1), TEACHER, mpp=0.5).height == K


def test_index_is_used(world: Lake) -> None:
    lake = indexed(world)
    for part in Path(lake.store.path(features_table(0.5))).glob("_indices/*/*.idx"):
        part.write_bytes(b"gone")
    lake = open_lake(lake.uri)
    with pytest.raises(DamageError, match="exact search goes without"):
        lake.nearest(queries(1), TEACHER, mpp=0.5)
    assert recall(lake, exact=True) == 1
    assert build_index(lake, TEACHER, mpp=0.5, least_rows=LEAST).complete
    assert recall(lake.refreshed()) >= 0.95


def test_complete_index_is_kept(world: Lake) -> None:
    lake = indexed(world)
    again = indexed(lake)
    assert again.version == lake.version
    assert live_writers(lake.store) == []


def test_few_tiles_are_not_indexed(world: Lake) -> None:
    with pytest.raises(LakeError, match=r"1,200 tiles have features of .* from 20,000 on"):
        build_index(world, TEACHER, mpp=0.5)
    with pytest.raises(LakeError, match="no features of 'u'"):
        build_index(world, "u", mpp=0.5)
    assert world.refreshed().version == world.version


def test_what_came_after_the_index_is_found(world: Lake) -> None:
    lake = add_slides(indexed(world), {"late": 100})
    assert state_of(lake) == (1200, 1200)
    assert recall(lake) >= 0.95
    lake = add_teacher(lake, TEACHER, DIM)
    assert state_of(lake) == (1200, 1300)
    late = lake.bag("late", TEACHER, mpp=0.5)
    neighbours = lake.nearest(late.features, TEACHER, mpp=0.5, k=1)
    assert neighbours["tile_id"].to_list() == late.tile_id.tolist()
    assert recall(lake) >= 0.95
    assert state_of(indexed(lake)) == (1300, 1300)


def test_replaced_slide_is_found_as_it_is_now(world: Lake) -> None:
    lake = add_slides(indexed(world), {"a1": 80}, mark="again")
    assert state_of(lake) == (1100, 1100)
    neighbours = lake.nearest(queries(), TEACHER, mpp=0.5, k=60)
    assert "a1" not in set(neighbours["slide_id"])
    lake = add_teacher(lake, TEACHER, DIM)
    bag = lake.bag("a1", TEACHER, mpp=0.5)
    neighbours = lake.nearest(bag.features, TEACHER, mpp=0.5, k=1)
    assert neighbours["tile_id"].to_list() == bag.tile_id.tolist()
    assert recall(lake) >= 0.95


def test_rewritten_column_is_not_found_by_its_old_values(
    world: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = indexed(world)
    before.committer.drop_column(0.5, TEACHER, [0])
    lake = before.refreshed()
    assert state_of(lake) == (600, 600)
    assert recall(lake) >= 0.95
    with monkeypatch.context() as patch:
        # With nothing to spare, each old row that the index proposes would be one too few.
        patch.setattr(lance_nearest, "REFINE", 1)
        for k in (10, 100, 1000):
            neighbours = lake.nearest(queries(5), TEACHER, mpp=0.5, k=k)
            assert neighbours.group_by("query").len()["len"].to_list() == [min(k, 600)] * 5
    monkeypatch.setattr(small_lake, "values_of", other_blobs)
    lake = add_teacher(lake, TEACHER, DIM)
    assert state_of(lake) == (600, 1200)
    assert recall(lake) >= 0.95
    assert recall(open_lake(world.uri, version=before.version)) >= 0.95
    assert state_of(indexed(lake)) == (1200, 1200)
    assert recall(indexed(lake)) >= 0.95


def test_column_that_is_rewritten_while_the_index_is_built_is_left_out(
    world: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = type(world.table(features_table(0.5)))
    build = table.create_index_uncommitted

    def build_slowly(self: object, *args: object, **options: object) -> object:
        built = build(self, *args, **options)
        world.committer.drop_column(0.5, TEACHER, [1])
        monkeypatch.setattr(small_lake, "values_of", other_blobs)
        files = write_columns(world.refreshed(), 0.5, TEACHER, DIM)
        world.committer.commit_columns(0.5, files)
        return built

    monkeypatch.setattr(table, "create_index_uncommitted", build_slowly)
    lake = indexed(world)
    assert state_of(lake) == (600, 1200)
    assert recall(lake) >= 0.95
    monkeypatch.setattr(table, "create_index_uncommitted", build)
    assert state_of(indexed(lake)) == (1200, 1200)


def test_lake_with_an_index_is_kept_as_any_other(world: Lake) -> None:
    lake = indexed(world)
    compact(lake)
    assert state_of(lake.refreshed()) == (0, 1200)
    assert recall(lake.refreshed()) == 1
    lake = indexed(lake)
    assert state_of(lake) == (1200, 1200)
    vacuum(lake, keep=1)
    lake = open_lake(lake.uri)
    assert recall(lake) >= 0.95
    assert verify(lake).ok
    indices = Path(lake.store.path(features_table(0.5))) / "_indices"
    assert len(list(indices.glob("*/*.idx"))) == 2


def test_kill_before_the_index_is_in_the_lake(world: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("featurestore.commits.lance_ledger.Ledger.apply", killed)
        with pytest.raises(KeyboardInterrupt):
            indexed(world)
    assert state_of(world.refreshed()) == (0, 1200)
    assert live_writers(world.store) == []
    lake = indexed(world)
    assert state_of(lake) == (1200, 1200)


@pytest.mark.slow
def test_index_in_a_bucket(any_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_lake, "values_of", blobs)
    create_lake(any_store.uri, LakeConfig(mpps=(0.5,)))
    lake = add_slides(open_lake(any_store.uri), {f"a{i}": 100 for i in range(4)})
    lake = indexed(add_teacher(lake, TEACHER, DIM))
    assert state_of(lake) == (400, 400)
    bag = lake.bag("a3", TEACHER, mpp=0.5)
    neighbours = lake.nearest(bag.features[:5], TEACHER, mpp=0.5, k=1)
    assert neighbours["tile_id"].to_list() == bag.tile_id[:5].tolist()
    vacuum(lake, keep=1)
    assert recall(open_lake(any_store.uri)) >= 0.95
