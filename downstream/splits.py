"""Folds over patients, never over slides or tiles.

Two slides of one patient, one in train and one in test, are a leak.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

_MIN_FOLDS = 2


class SplitError(ValueError):
    """A split that cannot be made from these labels."""


class LeakageError(ValueError):
    """Groups that must be disjoint share members."""


def patient_folds(
    labels: NDArray[np.int64] | NDArray[np.bool_], folds: int, seed: int
) -> NDArray[np.int64]:
    """Assign every patient to exactly one test fold, stratified by label.

    Args:
        labels: [P] one label per patient (class index, or event flag for survival).
        folds: How many folds, at least 2.
        seed: Same labels and seed, same folds.

    Returns:
        int64[P] fold numbers in 0..folds-1; each class is spread over the folds as evenly as it can
        be.

    Raises:
        SplitError: Fewer than two folds, or a class with fewer patients than folds.
    """
    from sklearn.model_selection import StratifiedKFold

    classes, counts = np.unique(labels, return_counts=True)
    if folds < _MIN_FOLDS or folds > counts.min():
        rarest = classes[counts.argmin()]
        msg = (
            f"folds={folds} with {counts.min()} patients in the rarest class ({rarest}); allowed "
            "is 2 to that number: ask for fewer folds, merge classes or add patients"
        )
        raise SplitError(msg)
    fold_of = np.empty(len(labels), dtype=np.int64)
    splitter = StratifiedKFold(n_splits=folds, shuffle=True, random_state=seed)
    for fold, (_, test) in enumerate(splitter.split(np.zeros((len(labels), 1)), labels)):
        fold_of[test] = fold
    return fold_of


def assert_disjoint(groups: Mapping[str, Iterable[str]]) -> None:
    """Refuse a split that leaks.

    Args:
        groups: Name of a group (train, test, teacher statistics, ...) -> the ids in it: patients,
            or slides.

    Raises:
        LeakageError: Two groups share an id.

    >>> assert_disjoint({"train": ["p1", "p2"], "test": ["p3"]})
    """
    sets = {name: set(ids) for name, ids in groups.items()}
    for (one, ids_one), (other, ids_other) in combinations(sets.items(), 2):
        shared = sorted(ids_one & ids_other)
        if shared:
            msg = (
                f"{len(shared)} ids are both in {one} and in {other}, for example "
                f"{', '.join(shared[:5])}; split by patient, with patient_folds"
            )
            raise LeakageError(msg)
