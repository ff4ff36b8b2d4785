"""The order of an epoch: permutations, ranks, batches. No lake is read."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from featurestore import LakeError
from featurestore.read.permutation import Permutation
from featurestore.read.stream_order import Order

Int64Array = npt.NDArray[np.int64]


@settings(deadline=None)
@given(size=st.integers(1, 3000), key=st.lists(st.integers(0, 2**40), min_size=1, max_size=3))
def test_permutation_is_one_to_one(size: int, key: list[int]) -> None:
    numbers = Permutation(size, key).at(np.arange(size))
    assert sorted(numbers.tolist()) == list(range(size))


@settings(deadline=None)
@given(size=st.integers(2, 2**40), place=st.integers(0, 2**40), seed=st.integers(0, 2**32))
def test_a_place_is_the_same_alone_and_among_others(size: int, place: int, seed: int) -> None:
    places = np.array([place % size, 0, size - 1])
    together = Permutation(size, [seed]).at(places)
    assert ((together >= 0) & (together < size)).all()
    assert [int(Permutation(size, [seed]).at([p])[0]) for p in places] == together.tolist()


@pytest.mark.parametrize("size", [4, 7])
def test_every_order_of_few_things_comes_as_often(size: int) -> None:
    """Chi-square over (place, thing) of 1,000 keys: far below it would be no better than above."""
    counts = np.zeros((size, size))
    for key in range(1000):
        counts[np.arange(size), Permutation(size, [key]).at(np.arange(size))] += 1
    expected = 1000 / size
    freedom = (size - 1) ** 2
    chi = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi - freedom) < 4 * np.sqrt(2 * freedom)


def test_neighbours_do_not_stay_near() -> None:
    """There is no correlation over 10^5 places, of places with numbers nor of numbers."""
    numbers = Permutation(100_000, [5]).at(np.arange(100_000)).astype(float)
    assert abs(np.corrcoef(numbers, np.arange(100_000))[0, 1]) < 0.02
    assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.02


# ---------------------------------------------------------------------- orders


def order(tiles: int, **given_: int | bool) -> Order:
    settings = {
        "batch_tiles": 8,
        "block_tiles": 4,
        "buffer_tiles": 32,
        "seed": 0,
        "rank": 0,
        "world": 1,
        "shuffle": True,
        "drop_last": False,
        **given_,
    }
    return Order(tiles=tiles, **settings)  # type: ignore[arg-type]


def given_rows(one: Order, epoch: int = 0) -> list[Int64Array]:
    """Return the rows of each batch, from buffers that are made one by one."""
    size = one.buffer_rows
    buffers = []
    for number in range(-(-one.rows // size)):
        rows = one.buffer(epoch, number)
        buffers.append(rows[one.inside(epoch, number, len(rows))])
    rows = np.concatenate(buffers)
    return [rows[slice(*one.batch(step))] for step in range(one.steps)]


SIZES = {
    "tiles": st.integers(1, 700),
    "batch_tiles": st.integers(1, 70),
    "block_tiles": st.integers(1, 40),
    "buffer_tiles": st.integers(1, 300),
    "seed": st.integers(0, 5),
    "shuffle": st.booleans(),
}


@settings(deadline=None)
@given(st.fixed_dictionaries(SIZES), st.integers(0, 3))
def test_every_row_comes_once_an_epoch(sizes: dict[str, int], epoch: int) -> None:
    batches = given_rows(order(**sizes), epoch)
    assert sorted(itertools.chain(*(b.tolist() for b in batches))) == list(range(sizes["tiles"]))
    assert all(len(batch) == sizes["batch_tiles"] for batch in batches[:-1])
    assert 0 < len(batches[-1]) <= sizes["batch_tiles"]


@settings(deadline=None)
@given(st.fixed_dictionaries({**SIZES, "world": st.integers(2, 5), "drop_last": st.booleans()}))
def test_ranks_share_the_rows_and_give_equally_many_batches(sizes: dict[str, int]) -> None:
    try:
        ranks = [order(**sizes, rank=rank) for rank in range(sizes["world"])]
    except LakeError:
        reject()
    batches = [given_rows(rank) for rank in ranks]
    assert len({len(rank_batches) for rank_batches in batches}) == 1
    rows = [row for rank_batches in batches for batch in rank_batches for row in batch.tolist()]
    assert len(set(rows)) == len(rows)
    assert all(
        0 < len(batch) <= sizes["batch_tiles"] for rank_batches in batches for batch in rank_batches
    )
    if sizes["drop_last"]:
        assert {len(batch) for rank_batches in batches for batch in rank_batches} == {
            sizes["batch_tiles"]
        }
    else:
        assert sorted(rows) == list(range(sizes["tiles"]))


def test_the_order_is_that_of_seed_and_epoch() -> None:
    def told(epoch: int = 0, **given_: int | bool) -> list[int]:
        return np.concatenate(given_rows(order(500, **given_), epoch)).tolist()  # type: ignore[no-any-return]

    assert told() == told()
    assert told() != told(epoch=1)
    assert told() != told(seed=1)
    assert told(shuffle=False) == told(epoch=3, seed=2, shuffle=False) == list(range(500))


def test_blocks_are_cut_elsewhere_in_each_epoch() -> None:
    """Tiles that are read together in one epoch are not all together in the next."""
    starts = []
    for epoch in range(3):
        rows = order(4001, buffer_tiles=4004).buffer(epoch, 0)
        starts.append({int(row) % 4 for row in rows[::4].tolist()})
    assert len({frozenset(s) for s in starts}) > 1


def test_a_batch_mixes_what_lies_apart() -> None:
    """100 slides of 1,000 rows: the expected number of slides in a batch of independent draws."""
    one = order(100_000, batch_tiles=256, block_tiles=32, buffer_tiles=4096)
    slide_counts = [len(set((batch // 1000).tolist())) for batch in given_rows(one)[:-1]]
    buffers = 4096 / 32  # blocks, each of its own slide at best
    blocks = buffers * (1 - (1 - 1 / buffers) ** 256)
    slides = 100 * (1 - (1 - 1 / 100) ** blocks)
    assert np.mean(slide_counts) == pytest.approx(slides, rel=0.1)
    assert min(slide_counts) > 40


def test_planning_does_not_grow_with_the_rows() -> None:
    one = order(3 * 10**9, batch_tiles=256, block_tiles=32, buffer_tiles=4096, world=64, rank=63)
    last = one.rows // one.buffer_rows
    assert one.buffer(7, last).max() < 3 * 10**9
    assert one.steps == -(-3 * 10**9 // 64 // 256)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tiles": 0}, "0 tiles .* are too few"),
        ({"tiles": 5, "drop_last": True}, "5 tiles .* batches of 8"),
        ({"tiles": 8, "world": 3}, "blocks of 4 are too few .* each of 3 ranks"),
        ({"tiles": 8, "rank": 1}, "rank 1 of 1"),
        ({"tiles": 8, "batch_tiles": 0}, "at least 1"),
        ({"tiles": 8, "seed": -1}, "not negative"),
    ],
)
def test_settings_that_give_nothing_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(LakeError, match=message):
        order(**settings)
