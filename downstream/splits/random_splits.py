"""Random splits of patients as CLAM draws them, and the split of an external validation.

Shape letters: P patients.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from cluster import counted
from downstream.splits.folds import (
    inner_part_count,
    inner_splits,
    sorted_ids_and_classes,
    stratified,
)
from downstream.splits.split import Split, SplitError

_SHARE = 0.1


def monte_carlo_splits(
    patients: Sequence[str],
    labels: Sequence[object],
    *,
    count: int,
    seed: int,
    share: float = _SHARE,
) -> list[Split]:
    """Return random splits, each with a share of every class for validation and as much for test.

    Test parts of different splits overlap: each split is a repetition of its own, in which a
    patient is tested at most once. Some patients may be tested in none.

    Args:
        patients: ids of the patients.
        labels: stratum of each patient.
        count: number of splits.
        seed: seed of the draws, which do not depend on the order of patients.
        share: share of each class for validation, and for test; rounded.

    Raises:
        SplitError: A class is too small for one test and one validation patient, or no split.

    Source:
        CLAM, `utils/utils.py: generate_split`.
    """
    ids, classes = sorted_ids_and_classes(patients, labels)
    sizes = np.bincount(classes)
    held = np.round(sizes * share).astype(int)
    if count < 1 or (held < 1).any():
        msg = (
            f"{count} random splits with {sizes.min()} patients in the rarest class; each tests "
            f"{share:.0%} of every class, so that a class needs {int(np.ceil(0.51 / share))} "
            "patients or more: use folds (--split patient), or merge classes"
        )
        raise SplitError(msg)
    splits = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
        for label, size in enumerate(held):
            drawn = rng.permutation(np.flatnonzero(classes == label))
            parts["validation"] += drawn[:size].tolist()
            parts["test"] += drawn[size : 2 * size].tolist()
            parts["train"] += drawn[2 * size :].tolist()
        chosen = {part: tuple(ids[row] for row in sorted(rows)) for part, rows in parts.items()}
        splits.append(Split(**chosen, repeat=number, fold=0))  # type: ignore[arg-type]
    return splits


def external_splits(
    label_of: Mapping[str, object],
    tested: Collection[str],
    *,
    inner: int,
    validation: bool,
    seed: int,
) -> list[Split]:
    """Return the split that tests some patients by models of all others.

    Args:
        label_of: stratum of each patient.
        tested: patients of the test part.
        inner: inner splits of the others, whose models are averaged.
        validation: whether a part of the others decides when training stops; without, all of them
            are trained on.
        seed: seed of the inner splits.

    Raises:
        SplitError: Nobody to train on, or a class with too few patients for the inner splits.
    """
    others = sorted(set(label_of) - set(tested))
    if not others or not tested:
        msg = (
            f"{counted(len(others), 'patient')} to train on, {len(tested)} to test; both need some"
        )
        raise SplitError(msg)
    if not validation:
        return [Split(train=tuple(others), validation=(), test=tuple(sorted(tested)))]
    ids, classes = sorted_ids_and_classes(others, [label_of[one] for one in others])
    everyone = [*ids, *sorted(tested)]
    rest = np.arange(len(ids))
    parts = stratified(classes, inner_part_count(classes, 5, inner), seed, 0, 1)
    return inner_splits(everyone, np.arange(len(ids), len(everyone)), rest, parts[:inner], fold=0)
