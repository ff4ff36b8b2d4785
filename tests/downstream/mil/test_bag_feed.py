"""Bags read ahead in a thread, and kept on a device: the same order, numbers and errors."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from downstream import MilSettings
from downstream.mil import bag_feed, predict, train
from downstream.mil.bag_feed import BagFeed, HasTensors, Room, SentBag
from downstream.mil.bag_moments import TileMoments, bag_moments
from downstream.mil.bag_sequence import tile_statistics
from downstream.mil.losses import BagTask
from downstream.mil.objective import LabelObjective
from downstream.mil.read_ahead import read_ahead
from downstream.mil.train import Examples, TrainedModel, train_mil
from downstream.run.feature_bags import PatientBag

CPU = torch.device("cpu")
WIDTH = 6


def bag(tiles: int, seed: int) -> PatientBag:
    """A bag of random features in one row of tiles."""
    rng = np.random.default_rng(seed)
    at = np.arange(tiles)
    return PatientBag(
        features=rng.standard_normal((tiles, WIDTH)).astype(np.float16),
        places=np.stack([np.zeros_like(at), at], axis=1),
        family=at.astype(np.int32),
        slide=np.zeros(tiles, np.int32),
        tile_id=at,
        x=at.astype(np.int32),
        y=np.zeros(tiles, np.int32),
    )


BAGS = [bag(5 + number % 7, number) for number in range(14)]
LABELS = (np.arange(14) % 2).astype(np.float64)


def test_items_come_in_their_order_from_another_thread() -> None:
    threads = set()

    def items() -> Iterator[int]:
        for number in range(50):
            threads.add(threading.current_thread())
            yield number

    assert list(read_ahead(items(), depth=3)) == list(range(50))
    (maker,) = threads
    assert maker is not threading.current_thread()
    assert not maker.is_alive()


def test_items_are_made_while_another_is_used() -> None:
    made = threading.Semaphore(0)

    def items() -> Iterator[int]:
        for number in range(3):
            made.release()
            yield number

    ahead = read_ahead(items())
    assert next(ahead) == 0
    for _ in range(3):
        assert made.acquire(timeout=10)  # all are made, though only the first was taken
    ahead.close()


def test_an_exception_comes_where_its_item_would_have_come() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        msg = "no third"
        raise OSError(msg)

    ahead = read_ahead(items())
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(OSError, match="no third"):
        next(ahead)


def test_a_reader_that_stops_early_stops_the_thread() -> None:
    threads = []

    def items() -> Iterator[int]:
        threads.append(threading.current_thread())
        number = 0
        while True:
            yield number
            number += 1

    ahead = read_ahead(items(), depth=1)
    assert [next(ahead), next(ahead)] == [0, 1]
    time.sleep(0.01)  # the thread waits with the next ones
    ahead.close()
    assert not threads[0].is_alive()


@pytest.mark.parametrize("rows", [slice(None), np.array([0, 3, 4]), np.array([True, False] * 2)])
def test_tiles_are_the_same_from_a_bag_that_is_kept(
    rows: slice | NDArray[np.int64] | NDArray[np.bool_],
) -> None:
    one = bag(5 if isinstance(rows, np.ndarray) and rows.dtype != np.bool_ else 4, 0)
    read, kept = (BagFeed([one], CPU, room=Room(size)) for size in (0, 10**6))
    assert isinstance(read.bag(0), PatientBag)
    assert isinstance(kept.bag(0), SentBag)
    assert kept.bag(0) is kept.bag(0)
    for from_bag, from_kept in zip(
        read.tiles(read.bag(0), rows), kept.tiles(kept.bag(0), rows), strict=True
    ):
        torch.testing.assert_close(from_bag, from_kept, rtol=0, atol=0)
    assert read.tiles(read.bag(0), rows)[0].dtype == torch.float32


def test_bags_are_kept_while_there_is_room() -> None:
    size = BAGS[0].features.nbytes + BAGS[0].places.nbytes
    room = Room(2 * size)
    feeds = [BagFeed([BAGS[0]], CPU, room=room) for _ in range(3)]
    assert [isinstance(feed.bag(0), SentBag) for feed in feeds] == [True, True, False]


OBJECTIVE = LabelObjective.fit(BagTask(kind="multiclass", outputs=2), LABELS[:10], weighted=True)


def trained(settings: MilSettings, device: str = "cpu") -> TrainedModel:
    """Train on ten of the bags, and validate on the others."""
    training, validation = (
        Examples(bags=BAGS[rows], target=LABELS[rows]) for rows in (slice(10), slice(10, None))
    )
    return train_mil(
        "abmil",
        training,
        validation,
        OBJECTIVE,
        settings,
        widths=(WIDTH,),
        seed=3,
        device=device,
    )


@pytest.mark.parametrize(
    "settings",
    [
        MilSettings(epochs=3, hidden=8, max_tiles=6),
        MilSettings(epochs=3, hidden=8, batch_patients=4),
        MilSettings(epochs=3, hidden=8, experts=True),
    ],
    ids=["one by one", "padded", "experts"],
)
def test_training_ahead_of_itself_changes_nothing(
    settings: MilSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trained(settings)
    ahead_calls = []

    def ahead(items: Iterator[HasTensors], device: torch.device) -> Iterator[HasTensors]:
        ahead_calls.append(device)
        return read_ahead(items)

    for module in (train, predict):
        monkeypatch.setattr(module, "sent_ahead", ahead)
    monkeypatch.setattr(bag_feed.Room, "of", lambda _: Room(2000))  # some bags are kept
    threaded = trained(settings)
    assert len(ahead_calls) == 6  # for training and for validation, in each of three epochs
    assert threaded.train_loss == plain.train_loss
    assert threaded.validation_loss == plain.validation_loss
    for name, weights in plain.model.state_dict().items():
        torch.testing.assert_close(threaded.model.state_dict()[name], weights, rtol=0, atol=0)


def test_a_bag_that_can_not_be_read_stops_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(list[PatientBag]):
        reads = 0

        def __getitem__(self, index: int) -> PatientBag:  # type: ignore[override]
            self.reads += 1
            if self.reads > 12:  # the statistics have read all of them
                msg = "the disk is gone"
                raise OSError(msg)
            return super().__getitem__(index)

    monkeypatch.setattr(train, "sent_ahead", lambda items, _: read_ahead(items))
    objective = LabelObjective.fit(
        BagTask(kind="multiclass", outputs=2), LABELS[:10], weighted=True
    )
    examples = Examples(bags=Broken(BAGS[:10]), target=LABELS[:10])
    with pytest.raises(OSError, match="the disk is gone"):
        train_mil(
            "abmil", examples, None, objective, MilSettings(epochs=2), widths=(WIDTH,), seed=0
        )
    assert not [t for t in threading.enumerate() if t.name == "slidelake-bags"]


def test_kept_moments_spare_the_read() -> None:
    class Measured(list[PatientBag]):
        def __getitem__(self, index: int) -> PatientBag:  # type: ignore[override]
            raise AssertionError(index)

        def moments(self, index: int, /) -> TileMoments:
            return bag_moments(BAGS[index].features)

    mean, std = tile_statistics(Measured(BAGS))
    together = np.concatenate([one.features for one in BAGS]).astype(np.float64)
    np.testing.assert_allclose(mean, together.mean(axis=0))
    np.testing.assert_allclose(std, together.std(axis=0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_on_a_gpu_is_as_on_the_cpu() -> None:
    """Order and subsets are the same; sums differ in the last digits. No dropout: its draws do."""
    settings = MilSettings(epochs=3, hidden=8, max_tiles=6, dropout=0.0)
    plain, on_gpu = trained(settings), trained(settings, "cuda")
    np.testing.assert_allclose(on_gpu.train_loss, plain.train_loss, rtol=1e-3)
    np.testing.assert_allclose(on_gpu.validation_loss, plain.validation_loss, rtol=1e-3)
