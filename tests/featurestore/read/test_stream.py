"""Streams: exactly once, the same whatever the threads, on from any batch, joined by key."""

import gc
import io
import json
import subprocess
import sys
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from featurestore import Lake, LakeError, TileBatch
from featurestore.read.stream_tiles import Buffer
from featurestore.tables.lance_rows import Rows
from tests.conftest import ROOT, shard_samples
from tests.worlds.training_lake import DIMS, SIZES, jpeg_of, make

TILES = sum(SIZES.values())
SMALL: dict[str, Any] = {"mpp": 0.5, "batch_tiles": 16, "block_tiles": 4, "buffer_tiles": 64}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return make(tmp_path_factory.mktemp("stream") / "lake")


def same(a: TileBatch, b: TileBatch) -> bool:
    return (
        a.tile_id.tolist() == b.tile_id.tolist()
        and a.jpeg == b.jpeg
        and all(np.array_equal(a.features[name], b.features[name]) for name in a.features)
    )


def keys(batches: list[TileBatch]) -> list[int]:
    return [key for batch in batches for key in batch.tile_id.tolist()]


# ---------------------------------------------------------------------- what comes


def test_every_tile_comes_once_with_its_own_features_and_pixels(lake: Lake) -> None:
    batches = list(lake.stream(list(DIMS), **SMALL, pixels="uint8"))
    frame = lake.tiles(mpp=0.5).collect().sort("tile_id")
    assert sorted(keys(batches)) == frame["tile_id"].to_list()
    shards = [lake.store.path(path) for path in lake.tiles_of(mpp=0.5)["shard"]]
    stored = {key: sample["jpg"] for path in shards for key, sample in shard_samples(path).items()}
    for batch in batches:
        rows = frame[np.searchsorted(frame["tile_id"].to_numpy(), batch.tile_id).tolist()]
        for name in ("x", "y", "slide"):
            np.testing.assert_array_equal(getattr(batch, name), rows[name].to_numpy())
        for teacher, features in batch.features.items():
            np.testing.assert_array_equal(features, rows[teacher].to_numpy())
        assert batch.pixels is not None
        for key, pixels in zip(batch.tile_id.tolist(), batch.pixels, strict=True):
            by_pil = np.asarray(Image.open(io.BytesIO(stored[key])).convert("RGB"))
            np.testing.assert_array_equal(pixels, by_pil)


def test_stored_bytes_and_no_pixels(lake: Lake) -> None:
    with_jpeg = list(lake.stream("packed", **SMALL, pixels="jpeg"))
    assert all(b.pixels is None and b.jpeg is not None for b in with_jpeg)
    assert all(b.jpeg == [jpeg_of(key) for key in b.tile_id.tolist()] for b in with_jpeg)
    without = list(lake.stream("packed", **SMALL))
    assert keys(without) == keys(with_jpeg)
    assert all(batch.jpeg is None and batch.pixels is None for batch in without)


def test_without_shuffle_tiles_come_slide_by_slide(lake: Lake) -> None:
    batches = list(lake.stream("packed", **SMALL, shuffle=False))
    by_slide = lake.tiles(mpp=0.5).collect().sort("slide", "y", "x")
    assert keys(batches) == by_slide["tile_id"].to_list()


def test_some_slides_only(lake: Lake) -> None:
    stream = lake.stream("plain", **SMALL, slide_ids=["e", "b", "b"])
    assert (stream.tiles, stream.steps) == (SIZES["e"] + SIZES["b"], 10)
    ids = dict(stream.slides.select("slide", "slide_id").iter_rows())
    counts = Counter(ids[n] for batch in stream for n in batch.slide.tolist())
    assert counts == {"e": SIZES["e"], "b": SIZES["b"]}


def test_a_batch_has_tiles_of_most_slides(lake: Lake) -> None:
    """Against draws of single tiles: blocks of 4 and a buffer of 64 lose little."""
    stream = lake.stream("packed", **SMALL, slide_ids=["a", "b", "e", "f"])
    mixed, plain = [], []
    rng = np.random.default_rng(0)
    for epoch in range(10):
        stream.set_epoch(epoch)
        batches = list(stream)[:-1]
        pool = rng.permutation(np.concatenate([batch.slide for batch in batches]))
        mixed += [len(set(batch.slide.tolist())) for batch in batches]
        plain += [len(set(part.tolist())) for part in np.split(pool, len(batches))]
    assert np.mean(mixed) > 0.9 * np.mean(plain)


# ---------------------------------------------------------------------- order


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    threads=st.integers(2, 5),
    batch=st.integers(1, 70),
    block=st.integers(1, 20),
    buffer=st.integers(1, 130),
    epoch=st.integers(0, 3),
)
def test_threads_do_not_change_what_comes(
    lake: Lake, threads: int, batch: int, block: int, buffer: int, epoch: int
) -> None:
    def stream(threads: int) -> list[TileBatch]:
        one_stream = lake.stream(
            list(DIMS),
            mpp=0.5,
            pixels="jpeg",
            batch_tiles=batch,
            block_tiles=block,
            buffer_tiles=buffer,
            threads=threads,
        )
        one_stream.set_epoch(epoch)
        return list(one_stream)

    one, many = stream(1), stream(threads)
    assert sorted(keys(one)) == sorted(set(keys(one)))
    assert len(keys(one)) == TILES
    assert all(same(a, b) for a, b in zip(one, many, strict=True))


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_stream_goes_on_after_any_batch(lake: Lake, *, drop_last: bool) -> None:
    """It goes on from every place of an epoch, and over its end into the next one."""
    whole = lake.stream("plain", **SMALL, drop_last=drop_last)
    epochs = [list(whole), list(whole)]
    assert whole.epoch == 2
    for k in range(whole.steps + 1):
        first = lake.stream("plain", **SMALL, drop_last=drop_last)
        iterator = iter(first)
        given_ = [next(iterator) for _ in range(k)]
        state = json.loads(json.dumps(first.state_dict()))
        second = lake.stream("plain", **SMALL, drop_last=drop_last, threads=3)
        second.load_state_dict(state)
        rest = list(second)
        assert keys(given_ + rest) == keys(epochs[0])
        assert all(same(a, b) for a, b in zip(rest, epochs[0][k:], strict=True))
        assert keys(list(second)) == keys(epochs[1])


def test_set_epoch_gives_that_epoch_whole_unless_a_state_is_loaded(lake: Lake) -> None:
    stream = lake.stream("packed", **SMALL)
    whole = keys(list(stream))
    stream.set_epoch(0)
    assert keys(list(stream)) == whole
    stream.set_epoch(5)
    iterator = iter(stream)
    given_ = [next(iterator), next(iterator)]
    state = stream.state_dict()
    stream.set_epoch(5)
    fifth = keys(list(stream))
    assert fifth[:32] == keys(given_)
    assert fifth != whole
    # The usual loop of a run that goes on: `for epoch in range(stream.epoch, epochs)`.
    stream.load_state_dict(state)
    stream.set_epoch(stream.epoch)
    assert keys(list(stream)) == fifth[32:]
    stream.set_epoch(5)
    assert keys(list(stream)) == fifth


def test_a_state_of_another_order_is_refused(lake: Lake) -> None:
    state = lake.stream("packed", **SMALL).state_dict()
    lake.stream("plain", **SMALL, pixels="jpeg", threads=4).load_state_dict(state)
    for change in ({"seed": 1}, {"batch_tiles": 8}, {"world": 2}, {"shuffle": False}):
        other = lake.stream("packed", **{**SMALL, **change})
        with pytest.raises(LakeError, match=next(iter(change))):
            other.load_state_dict(state)
    with pytest.raises(LakeError, match=r"slides .* \(here .*tiles 220 \(here 154\)"):
        lake.stream("packed", **SMALL, slide_ids=["b", "e"]).load_state_dict(state)


def test_ranks_share_an_epoch(lake: Lake) -> None:
    ranks = [list(lake.stream("packed", **SMALL, rank=rank, world=3)) for rank in range(3)]
    assert len({len(batches) for batches in ranks}) == 1
    alone = lake.stream("packed", **SMALL)
    shared = [key for batches in ranks for key in keys(batches)]
    assert sorted(shared) == sorted(keys(list(alone)))
    assert len(set(shared)) == TILES


# ---------------------------------------------------------------------- processes and threads


def test_a_data_loader_gives_the_batches_of_the_stream(lake: Lake) -> None:
    stream = lake.stream("packed", **SMALL)
    plain = keys(list(lake.stream("packed", **SMALL)))
    assert keys(list(DataLoader(stream, batch_size=None))) == plain


@pytest.mark.slow
def test_spawned_workers_share_a_ranks_part(lake: Lake) -> None:
    stream = lake.stream("packed", **SMALL, pixels="jpeg", rank=1, world=2)
    loader = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    all_batches = list(loader)
    expected = [
        list(lake.stream("packed", **SMALL, pixels="jpeg", rank=rank, world=4)) for rank in (2, 3)
    ]
    by_first = {batch.tile_id[0]: batch for batches in expected for batch in batches}
    assert len(all_batches) == len(by_first) == sum(len(batches) for batches in expected)
    assert all(same(batch, by_first.pop(batch.tile_id[0])) for batch in all_batches)


FORKED = """
import sys
from torch.utils.data import DataLoader
from featurestore import LakeError, open_lake
lake = open_lake(sys.argv[1])
data = getattr(lake, sys.argv[2])("packed", mpp=0.5)
next(iter(data))
try:
    next(iter(DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context="fork")))
except LakeError as error:
    print(str(error).replace("\\n", " "))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stream", "bags"])
def test_a_forked_worker_is_refused_before_lance_hangs(lake: Lake, kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED, lake.uri, kind],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=True,
    )
    assert "multiprocessing_context='spawn'" in done.stdout


def readers() -> int:
    return sum("slidelake-stream" in thread.name for thread in threading.enumerate())


@pytest.mark.slow
def test_a_stream_left_early_stops_its_threads(lake: Lake) -> None:
    stream = lake.stream("plain", **SMALL, pixels="uint8", threads=3)
    for batch in stream:
        assert len(batch.tile_id) == 16
        assert readers() > 0
        break
    gc.collect()
    assert readers() == 0
    iterator = iter(stream)
    next(iterator)
    del iterator
    gc.collect()
    assert readers() == 0


def test_reading_ahead_is_bounded(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow consumer finds three buffers at most, whatever the epoch is long."""
    alive: set[int] = set()

    class Counted(Buffer):
        def take(self, start: int, stop: int) -> Rows:
            alive.add(id(self))
            return super().take(start, stop)

        def __del__(self) -> None:
            alive.discard(id(self))

    monkeypatch.setattr("featurestore.read.stream.Buffer", Counted)
    stream = lake.stream("plain", mpp=0.5, batch_tiles=8, block_tiles=4, buffer_tiles=16)
    assert max([len(alive) for _ in stream]) in (1, 2, 3)
    assert not alive
