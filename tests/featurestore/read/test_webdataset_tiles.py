"""The webdataset pipeline of a lake, compared with webdataset's own reading of the same shards."""

import gc
import pickle
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import simplejpeg
import webdataset as wds

from featurestore import DamageError, Lake, LakeError, copy_lake, open_lake
from featurestore.read.webdataset_tiles import RankSplit, TilePipeline, TileReader
from tests.worlds.s3 import Bucket
from tests.worlds.training_lake import (
    DIMS,
    SIZES,
    add_features,
    cut,
    feature_rows,
    jpeg_of,
    make,
    register,
    row_of_cells,
)

Sample = dict[str, Any]
TILES = sum(SIZES.values())


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return make(tmp_path_factory.mktemp("webdataset") / "lake")


@pytest.fixture(autouse=True)
def no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "WORKER", "NUM_WORKERS"):
        monkeypatch.delenv(name, raising=False)


def peer(urls: list[str]) -> list[Sample]:
    """The samples of the same shards as plain webdataset reads and loads them."""
    with warnings.catch_warnings():
        # webdataset 1.0.2 leaves the tar open until it is collected
        warnings.simplefilter("ignore", ResourceWarning)
        dataset = wds.WebDataset(urls, shardshuffle=False)
        samples = list(wds.WebLoader(dataset, batch_size=None, num_workers=0))
        gc.collect()
    return samples


def keys(samples: Iterable[Sample]) -> list[str]:
    return [sample["__key__"] for sample in samples]


def test_in_order_it_is_what_webdataset_reads_with_the_features_added(lake: Lake) -> None:
    tiles = lake.webdataset(list(DIMS), mpp=0.5, shuffle=False)
    samples, others = list(tiles), peer(tiles.urls)
    assert keys(wds.WebLoader(tiles, batch_size=None, num_workers=0)) == keys(others)
    assert len(samples) == tiles.tiles == tiles.count() == TILES
    assert keys(samples) == keys(others)
    slide_of = dict(lake.tiles(mpp=0.5).select("tile_id", "slide_id").collect().iter_rows())
    for sample, other in zip(samples, others, strict=True):
        assert sample["jpg"] == other["jpg"]
        assert sample["__url__"] == other["__url__"]
        key = int(other["__key__"])
        assert (sample["tile_id"], sample["slide_id"]) == (key, slide_of[key])
        for teacher, dim in DIMS.items():
            truth = feature_rows(np.array([key]), dim)[0]
            assert sample[teacher].dtype == np.float16
            np.testing.assert_array_equal(sample[teacher], truth)


def test_pixels_are_decoded_as_webdataset_does(lake: Lake) -> None:
    names = {"mpp": 0.5, "shuffle": False, "slide_ids": ["b"]}
    decoded = list(lake.webdataset("packed", pixels="uint8", **names))  # type: ignore[arg-type]
    by_webdataset = list(lake.webdataset("packed", **names).decode("rgb8"))  # type: ignore[arg-type]
    stored = peer(lake.webdataset("packed", **names).urls)  # type: ignore[arg-type]
    for sample, other, tile in zip(decoded, by_webdataset, stored, strict=True):
        truth = simplejpeg.decode_jpeg(tile["jpg"], colorspace="RGB")
        np.testing.assert_array_equal(sample["jpg"], truth)
        assert np.abs(other["jpg"].astype(int) - truth).max() <= 1
        np.testing.assert_array_equal(sample["packed"], other["packed"])
    bare = next(iter(lake.webdataset("packed", pixels="none", **names)))  # type: ignore[arg-type]
    assert set(bare) == {"__key__", "__url__", "packed", "tile_id", "slide_id", "x", "y"}


def test_shuffled_epochs_hold_every_tile_once_in_other_orders(lake: Lake) -> None:
    def made(seed: int) -> TilePipeline:
        return lake.webdataset("packed", mpp=0.5, pixels="none", buffer_tiles=50, seed=seed)

    tiles = made(3)
    epochs = [keys(tiles) for _ in range(2)]
    in_order = sorted(epochs[0])
    assert len(set(in_order)) == TILES
    assert sorted(epochs[1]) == in_order
    assert in_order not in epochs
    assert epochs[0] != epochs[1]
    again, other = made(3), made(4)
    again.set_epoch(1)
    assert keys(again) == epochs[1]
    assert keys(other) not in epochs
    # neighbours in the order are of several slides, though a shard holds one
    some = list(made(3))[:40]
    assert len({sample["slide_id"] for sample in some}) > 1


@pytest.mark.slow
def test_two_ranks_with_two_workers_give_each_tile_once(lake: Lake) -> None:
    """Spawned workers, whose rank is that of the process that made the loader."""
    seen: Counter[str] = Counter()
    for rank in range(2):
        tiles = lake.webdataset("packed", mpp=0.5, rank=rank, world=2).batched(16)
        loader = wds.WebLoader(
            tiles, batch_size=None, num_workers=2, multiprocessing_context="spawn"
        )
        for batch in loader:
            seen.update(batch["__key__"])
            assert batch["packed"].shape == (len(batch["__key__"]), 6)
            truth = feature_rows(np.asarray(batch["tile_id"]), 6)
            np.testing.assert_array_equal(np.asarray(batch["packed"]), truth)
    assert (len(seen), set(seen.values())) == (TILES, {1})


@pytest.mark.parametrize("order", ["shuffled", "in order"])
@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_splits_lose_and_repeat_nothing(
    lake: Lake, world: int, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks and workers by the environment variables that webdataset reads."""
    seen: Counter[str] = Counter()
    tiles = lake.webdataset("packed", mpp=0.5, pixels="none", shuffle=order == "shuffled")
    sent = pickle.dumps(tiles)  # by a driver, that has no rank
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world))
        here = pickle.loads(sent)
        to_worker = pickle.dumps(here)
        monkeypatch.delenv("RANK")  # a worker may know neither
        monkeypatch.delenv("WORLD_SIZE")
        for worker in range(2):
            monkeypatch.setenv("WORKER", str(worker))
            monkeypatch.setenv("NUM_WORKERS", "2")
            seen.update(keys(pickle.loads(to_worker)))
            monkeypatch.delenv("WORKER")
            monkeypatch.delenv("NUM_WORKERS")
    assert (len(seen), set(seen.values())) == (TILES, {1})


def test_ranks_get_about_equally_many_tiles(lake: Lake) -> None:
    counts = [
        len(list(lake.webdataset("packed", mpp=0.5, pixels="none", rank=rank, world=2)))
        for rank in range(2)
    ]
    assert sum(counts) == TILES
    assert abs(counts[0] - counts[1]) <= max(SIZES.values())


def test_a_predicate_chooses_tiles_and_counts_the_others(lake: Lake) -> None:
    where = (pl.col("x") >= 64) & (pl.col("slide_id") != "e")
    tiles = lake.webdataset("packed", mpp=0.5, pixels="none", where=where)
    truth = lake.tiles(mpp=0.5).filter(where).collect()["tile_id"].to_list()
    assert sorted(sample["tile_id"] for sample in tiles) == sorted(truth)
    assert tiles.tiles == tiles.count() == len(truth)
    assert tiles.left_out == {"where": TILES - len(truth)}
    with pytest.raises(LakeError, match=r"can't be asked of tiles \(tile_id, .*nothing"):
        lake.webdataset("packed", mpp=0.5, where=pl.col("nothing") > 0)
    with pytest.raises(LakeError, match=r"has no such tiles at mpp 0.5 \(where: 220 tiles\)"):
        lake.webdataset("packed", mpp=0.5, where=pl.col("x") < 0)


def test_slides_without_features_or_pixels_are_left_out_and_told(tmp_path: Path) -> None:
    lake = make(tmp_path / "lake", sizes={"a": 9, "b": 20})
    bare = register(lake, ["bare"])["bare"]
    lake.committer.commit_slides([cut(lake, bare, "bare", {0.5: row_of_cells(4)}, pixels=False)])
    add_features(lake.refreshed(), {"late": 6}, without=["b"])
    lake = lake.refreshed()
    with pytest.warns(UserWarning, match="left out") as told:
        tiles = lake.webdataset(["late"], mpp=0.5)
    assert [str(one.message) for one in told] == [
        "1 of 3 slides (4 tiles) have no pixels at mpp 0.5 and are left out: bare",
        "1 of 2 slides (20 tiles) have no features of 'late' at mpp 0.5 and are left out: b",
    ]
    assert Path(told[0].filename).name == Path(__file__).name
    assert (tiles.slides, tiles.tiles, len(list(tiles))) == (["a"], 9, 9)
    assert tiles.left_out == {"no pixels": 4, "no features of 'late'": 20}
    assert len(list(lake.webdataset([], mpp=0.5, slide_ids=["a", "b"]))) == 29
    with pytest.raises(LakeError, match=r"not in .*: x"):
        lake.webdataset("late", mpp=0.5, slide_ids=["x"])


def test_settings_are_checked(lake: Lake) -> None:
    with pytest.raises(LakeError, match="allowed: none, jpeg, uint8"):
        lake.webdataset("packed", mpp=0.5, pixels="png")  # type: ignore[arg-type]
    with pytest.raises(LakeError, match="give both, or none"):
        lake.webdataset("packed", mpp=0.5, rank=0)
    with pytest.raises(LakeError, match=r"rank 0 of 7 given for 6 shards; .*lake.stream"):
        lake.webdataset("packed", mpp=0.5, rank=0, world=7)
    with pytest.raises(LakeError, match="buffer_tiles=0 given"):
        lake.webdataset("packed", mpp=0.5, buffer_tiles=0)
    with pytest.raises(LakeError, match=r"several mpps, \[0\.5, 1\.0\]"):
        lake.webdataset("packed")
    with pytest.raises(LakeError, match="no features of 'other'"):
        lake.webdataset("other", mpp=0.5)


def test_a_sent_splitter_keeps_its_rank_and_a_drivers_has_none() -> None:
    assert pickle.loads(pickle.dumps(RankSplit(6, 1, 3))).place() == (1, 3)
    assert RankSplit(6, None, None).__getstate__()["_rank"] is None


def test_a_user_may_add_stages_and_cut_epochs(lake: Lake) -> None:
    tiles = lake.webdataset("packed", mpp=0.5)
    pairs = tiles.select(lambda one: one["slide_id"] == "a").to_tuple("packed", "slide_id")
    assert {name for _, name in pairs} == {"a"}
    even = [
        list(lake.webdataset("packed", mpp=0.5, rank=rank, world=2).batched(16).with_epoch(20))
        for rank in range(2)
    ]
    assert [len(batches) for batches in even] == [20, 20]
    assert len(list(tiles.repeat(2))) == 2 * TILES
    assert str(tiles).endswith(f"at mpp 0.5: 6 shards, {TILES} tiles)")
    assert str(open_lake(lake.uri).uri) in repr(tiles)


def test_damaged_tiles_raise_as_in_bags_and_streams(tmp_path: Path) -> None:
    lake = make(tmp_path / "lake", sizes={"a": 9, "b": 20})
    row = lake.tiles_of(mpp=0.5, slide_ids=["b"]).row(0, named=True)
    path = Path(lake.store.path(row["shard"]))
    content = bytearray(path.read_bytes())
    content[content.index(jpeg_of(int(lake.bag("b", "packed", mpp=0.5).tile_id[7]))) + 300] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamageError, match=r"slide b at mpp 0.5: shard .* is not what was written"):
        list(open_lake(lake.uri).webdataset("packed", mpp=0.5))
    assert len(list(lake.webdataset("packed", mpp=0.5, pixels="none"))) == 29
    path.unlink()
    with pytest.raises(DamageError, match=r"slide b at mpp 0.5: shard .* can't be read"):
        list(open_lake(lake.uri).webdataset("packed", mpp=0.5))


def test_a_forked_worker_is_refused(lake: Lake) -> None:
    tiles = lake.webdataset("packed", mpp=0.5)
    [reader] = [stage for stage in tiles.pipeline if isinstance(stage, TileReader)]
    reader._process = -1  # as in a process that was forked after it was made
    with pytest.raises(LakeError, match="multiprocessing_context='spawn'"):
        next(iter(tiles))


def test_a_lake_in_a_bucket_gives_the_same(lake: Lake, bucket: Bucket) -> None:
    copy_lake(lake.uri, bucket.uri)
    remote = pickle.loads(pickle.dumps(open_lake(bucket.uri).webdataset("plain", mpp=0.5)))
    assert remote.urls[0].startswith("s3://")
    by_key = {sample["__key__"]: sample for sample in remote}
    local = list(lake.webdataset("plain", mpp=0.5))
    assert len(by_key) == len(local) == TILES
    for sample in local:
        assert by_key[sample["__key__"]]["jpg"] == sample["jpg"]
        np.testing.assert_array_equal(by_key[sample["__key__"]]["plain"], sample["plain"])
