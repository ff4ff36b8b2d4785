"""ABMIL finds planted tiles, finds nothing where there is nothing, and is reproducible."""

import functools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from downstream import AbmilSettings
from downstream.mil import Abmil, predict, tile_statistics, train_abmil
from downstream.mil_bags import MilError
from downstream.mil_losses import class_weights

TILES, KEYS, WIDTH = 40, 4, 32
SETTINGS = AbmilSettings(hidden=64, attention=32, epochs=15, learning_rate=5e-4)

Bag = NDArray[np.float16]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As in a Ray task. Two threads on two busy cores took 28 s instead of 6 s."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cohort(patients: int, *, seed: int, shift: float) -> tuple[list[Bag], NDArray[np.int64]]:
    """Every other patient has KEYS first tiles that lie off the rest by `shift`."""
    rng = np.random.default_rng(seed)
    label = np.arange(patients, dtype=np.int64) % 2
    bags = rng.standard_normal((patients, TILES, WIDTH))
    bags[label == 1, :KEYS, 0] += shift
    return list(bags.astype(np.float16)), label


def score(model: Abmil, bags: list[Bag]) -> NDArray[np.float64]:
    return np.array([predict(model, bag)[0][1] for bag in bags])


@functools.cache
def planted() -> Abmil:
    bags, label = cohort(40, seed=0, shift=5.0)
    return train_abmil(bags, label, classes=2, settings=SETTINGS, seed=0)


def test_a_planted_signal_is_learnt() -> None:
    bags, label = cohort(60, seed=1, shift=5.0)
    assert roc_auc_score(label, score(planted(), bags)) > 0.9


def test_attention_ranks_the_key_tiles() -> None:
    bags, label = cohort(60, seed=1, shift=5.0)
    is_key = np.arange(TILES) < KEYS
    ranked = [roc_auc_score(is_key, predict(planted(), bag)[1]) for bag in bags]
    assert np.mean([area for area, y in zip(ranked, label, strict=True) if y]) > 0.9


def test_without_a_signal_there_is_nothing_to_learn() -> None:
    areas = []
    for seed in range(3):
        bags, label = cohort(30, seed=seed, shift=0.0)
        settings = AbmilSettings(hidden=64, attention=32, epochs=5)
        model = train_abmil(bags, label, classes=2, settings=settings, seed=seed)
        test, test_label = cohort(60, seed=100 + seed, shift=0.0)
        areas.append(roc_auc_score(test_label, score(model, test)))
    assert 0.35 < np.mean(areas) < 0.65


def test_three_classes() -> None:
    rng = np.random.default_rng(0)
    label = np.arange(30, dtype=np.int64) % 3
    bags = rng.standard_normal((30, 10, 8))
    bags[np.arange(30), :, label] += 2.0
    model = train_abmil(list(bags.astype(np.float16)), label, classes=3, settings=SETTINGS, seed=0)
    probability, _ = predict(model, bags[0].astype(np.float16))
    assert probability.shape == (3,)
    assert probability.sum() == pytest.approx(1)
    found = [predict(model, bag.astype(np.float16))[0].argmax() for bag in bags]
    assert np.mean(np.array(found) == label) > 0.9


def test_the_seed_decides_and_the_callers_random_state_is_left_alone() -> None:
    bags, label = cohort(8, seed=0, shift=5.0)
    train = functools.partial(
        train_abmil, bags, label, classes=2, settings=AbmilSettings(epochs=2, max_tiles=10)
    )
    before = torch.random.get_rng_state()
    one, same, other = train(seed=1), train(seed=1), train(seed=2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(score(one, bags), score(same, bags))
    assert not np.array_equal(score(one, bags), score(other, bags))


def test_the_order_of_tiles_changes_nothing() -> None:
    (bag, *_), _ = cohort(2, seed=2, shift=5.0)
    order = np.random.default_rng(0).permutation(TILES)
    probability, attention = predict(planted(), bag)
    shuffled, shuffled_attention = predict(planted(), bag[order])
    assert shuffled == pytest.approx(probability, rel=1e-5)
    assert shuffled_attention == pytest.approx(attention[order], rel=1e-4)
    assert attention.sum() == pytest.approx(1, rel=1e-5)


def test_prediction_in_chunks_is_prediction() -> None:
    (bag, *_), _ = cohort(2, seed=3, shift=5.0)
    whole, in_chunks = predict(planted(), bag), predict(planted(), bag, chunk_tiles=7)
    assert in_chunks[0] == pytest.approx(whole[0], rel=1e-5)
    assert in_chunks[1] == pytest.approx(whole[1], rel=1e-4)


def test_statistics_are_those_of_all_tiles_together() -> None:
    rng = np.random.default_rng(4)
    bags = [(rng.standard_normal((n, 5)) * 3 + 100).astype(np.float16) for n in (3, 50, 8)]
    bags = [np.concatenate([bag, np.ones((len(bag), 1), np.float16)], axis=1) for bag in bags]
    mean, std = tile_statistics(bags)
    tiles = np.concatenate(bags).astype(np.float64)
    assert mean == pytest.approx(tiles.mean(axis=0))
    assert std[:5] == pytest.approx(tiles[:, :5].std(axis=0))
    assert std[5] == 1.0  # a constant feature is not divided by zero


def test_the_rarer_class_weighs_more_in_a_step() -> None:
    # With the weight inside cross_entropy a batch of one would cancel it and both runs would agree.
    bags, _ = cohort(12, seed=5, shift=0.0)
    settings = AbmilSettings(epochs=1, dropout=0.0)
    label = np.array([1] + [0] * 11)
    assert class_weights(label, 2).tolist() == [12 / 22, 6.0]
    rare = train_abmil(bags, label, classes=2, settings=settings, seed=0)
    # an unweighted fit of 11:1 pushes every probability well below one half
    assert score(rare, bags[1:]).mean() > 0.3


def test_bags_and_labels_are_checked() -> None:
    bags, label = cohort(4, seed=0, shift=0.0)
    with pytest.raises(MilError, match="4 bags with 3 labels"):
        train_abmil(bags, label[:3], classes=2, settings=SETTINGS, seed=0)
    with pytest.raises(MilError, match=r"per class are \[2, 2, 0\]"):
        train_abmil(bags, label, classes=3, settings=SETTINGS, seed=0)
