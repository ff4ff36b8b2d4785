"""Folds: every patient once, classes spread evenly, leaks refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from downstream import LeakageError, SplitError, assert_disjoint, patient_folds


@given(
    counts=st.lists(st.integers(5, 20), min_size=2, max_size=4),
    folds=st.integers(2, 5),
    seed=st.integers(0, 2**31),
)
def test_folds_are_stratified(counts: list[int], folds: int, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    found = patient_folds(labels, folds, seed)
    assert found.shape == labels.shape
    for label in range(len(counts)):
        sizes = np.bincount(found[labels == label], minlength=folds)
        assert len(sizes) == folds
        assert sizes.max() - sizes.min() <= 1


def test_folds_are_a_function_of_the_seed() -> None:
    labels = np.arange(40) % 2
    assert np.array_equal(patient_folds(labels, 5, 0), patient_folds(labels, 5, 0))
    assert not np.array_equal(patient_folds(labels, 5, 0), patient_folds(labels, 5, 1))


def test_folds_take_event_flags() -> None:
    event = np.arange(20) % 4 == 0
    assert np.bincount(patient_folds(event, 5, 0)[event]).tolist() == [1] * 5


@pytest.mark.parametrize("folds", [1, 4])
def test_folds_beyond_the_rarest_class_are_refused(folds: int) -> None:
    labels = np.array([0] * 10 + [1] * 3)
    with pytest.raises(SplitError, match=f"folds={folds} with 3 patients in the rarest class"):
        patient_folds(labels, folds, 0)


def test_leakage_is_refused_and_named() -> None:
    assert_disjoint({"train": ["a", "b"], "validation": ["c"], "test": ["d"]})
    with pytest.raises(LeakageError, match="1 ids are both in train and in test, for example b"):
        assert_disjoint({"train": ["a", "b"], "validation": ["c"], "test": ["b"]})
