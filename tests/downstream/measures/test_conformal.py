"""Guarantees hold on cohorts whose patients are exchangeable, and their breaking is told."""

import numpy as np
import pytest
from numpy.typing import NDArray

from downstream.measures.conformal import answered_at, guarantee_warnings, lac_sets

Floats = NDArray[np.float64]


def drawn(
    rng: np.random.Generator, count: int, shift: float = 0.0
) -> tuple[NDArray[np.int64], Floats]:
    """Labels of three classes, and probabilities of a model that is right two times in three."""
    label = rng.integers(0, 3, count)
    logits = rng.standard_normal((count, 3))
    logits[np.arange(count), label] += 1.2 - shift
    odds = np.exp(logits)
    return label, odds / odds.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("level", [0.8, 0.9])
def test_sets_hold_the_class_as_often_as_promised(level: float) -> None:
    rng = np.random.default_rng(0)
    covered, sizes = [], []
    for _ in range(300):
        (label_N, seen), (label_P, new) = drawn(rng, 40), drawn(rng, 50)
        sets = lac_sets(seen, label_N, new, level=level)
        covered.append(sets[np.arange(50), label_P].mean())
        sizes.append(sets.sum(axis=1).mean())
    # between level and level + 1 / (N + 1); three standard errors are 0.01
    assert level - 0.01 < np.mean(covered) < level + 1 / 41 + 0.01
    assert 1 < np.mean(sizes) < 3


def test_the_quantile_is_the_published_one() -> None:
    rng = np.random.default_rng(1)
    (label_N, seen), (_, new) = drawn(rng, 19), drawn(rng, 5)
    unlike = np.sort(1 - seen[np.arange(19), label_N])
    sets = lac_sets(seen, label_N, new, level=0.9)
    assert sets.tolist() == (1 - new <= unlike[17]).tolist()  # ceil(20 * 0.9) = 18 of 19
    # nine validation patients cannot promise 95 %: every class is in every set
    assert lac_sets(seen[:9], label_N[:9], new, level=0.95).all()


def test_wrong_ones_among_the_answered_are_bounded() -> None:
    rng = np.random.default_rng(2)
    shares, answered = [], []
    for _ in range(300):
        (label_N, seen), (label_P, new) = drawn(rng, 60), drawn(rng, 50)
        told = answered_at(
            seen.max(axis=1),
            seen.argmax(axis=1) == label_N,
            new.max(axis=1),
            false_discoveries=0.2,
        )
        wrong = new.argmax(axis=1) != label_P
        shares.append(wrong[told].mean() if told.any() else 0.0)
        answered.append(told.mean())
    assert np.mean(shares) < 0.2 + 0.02
    assert np.mean(answered) > 0.2
    # where every validation patient is right, the surest and the least sure are told
    sure = np.linspace(0.5, 1, 30)
    assert answered_at(sure, np.ones(30, bool), sure, false_discoveries=0.1).all()
    assert not answered_at(sure, np.zeros(30, bool), sure, false_discoveries=0.1).any()


def test_a_site_that_breaks_it_is_named() -> None:
    rng = np.random.default_rng(3)
    (label_N, seen), (label_P, new) = drawn(rng, 200), drawn(rng, 60, shift=2.5)
    covered = lac_sets(seen, label_N, new, level=0.9)[np.arange(60), label_P]
    groups = {
        "near": {"coverage": 0.92, "patients": 60},
        "far": {"coverage": float(covered.mean()), "patients": 60},
        "few": {"coverage": 0.0, "patients": 3},
    }
    found = {"level": 0.9, "sets": {"by_class": {}, "by_site": groups}}
    (sentence,) = guarantee_warnings("arm", found)
    assert "in site far (" in sentence
    assert "near" not in sentence.partition("site")[2].partition(";")[0]
