"""Splits of patients that cannot leak: nested cross-validation, few-shot.

Shape letters: P patients.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from downstream.splits.split import PARTS, Part, Split, SplitError

__all__ = [
    "PARTS",
    "Part",
    "Split",
    "few_shot",
    "nested_folds",
    "strata",
    "with_validation",
]


def nested_folds(
    patients: Sequence[str],
    labels: Sequence[object],
    *,
    folds: int = 5,
    inner: int = 4,
    repeats: int = 1,
    seed: int,
) -> list[Split]:
    """Return stratified nested cross-validation over patients, repeated.

    Every patient is tested once a repetition. The other patients of an outer fold are split again:
    each of them is in validation once in that fold's inner splits, which all have the same test.

    Args:
        patients: ids of the patients.
        labels: stratum of each patient: a class, an event flag, or `strata` of a number.
        folds: outer folds, at least 2.
        inner: inner folds, at least 2; or 1 for one split with 1 / (folds - 1), at most half
            (more where the rarest class has fewer patients).
        repeats: repetitions with other assignments.
        seed: seed of the splits, which do not depend on the order of patients.

    Returns:
        The splits, ordered by repetition, fold and inner fold.

    Raises:
        SplitError: A class is too small, ids are not unique, or there are fewer than 2 folds.
    """
    ids, classes = sorted_ids_and_classes(patients, labels)
    splits: list[Split] = []
    for repeat in range(repeats):
        for fold, test in enumerate(stratified(classes, folds, seed, repeat)):
            rest = np.setdiff1d(np.arange(len(ids)), test)
            count = inner_part_count(classes[rest], folds, inner)
            parts = stratified(classes[rest], count, seed, repeat, fold + 1)
            splits += inner_splits(ids, test, rest, parts[:inner], repeat=repeat, fold=fold)
    return splits


def few_shot(split: Split, labels: Mapping[str, object], *, shots: int, seed: int) -> Split:
    """Return the split with `shots` training patients of each class, the other parts unchanged.

    Args:
        split: split whose training part is reduced.
        labels: class of each training patient, by id.
        shots: number of training patients of each class.
        seed: seed of the draw; the patients of fewer shots are among those of more.

    Raises:
        SplitError: A class has fewer training patients.
    """
    rng = np.random.default_rng([seed, split.repeat, split.fold, split.inner])
    taken: list[str] = []
    for label in sorted({labels[patient] for patient in split.train}, key=str):
        members = [patient for patient in split.train if labels[patient] == label]
        if not 0 < shots <= len(members):
            msg = f"shots={shots} of class {label!r} with {len(members)} training patients"
            raise SplitError(msg)
        taken += [members[at] for at in rng.permutation(len(members))[:shots]]
    return replace(split, train=tuple(taken))


def with_validation(
    split: Split, labels: Mapping[str, object], *, seed: int, share: float = 0.25
) -> Split:
    """Return the split with a validation part taken from its training patients, stratified.

    This is for tables without validation, such as STAMP's. Test part and sites are unchanged.

    Args:
        split: split without a validation part.
        labels: stratum of each training patient, by id.
        seed: seed of the draw, which does not depend on the order of labels.
        share: share of each class's training patients for validation, above 0 and below 1;
            rounded, at least one patient.

    Raises:
        SplitError: The split has a validation part, the share is out of range, or a class has
            one patient, who cannot be on both sides.
    """
    if split.validation or not 0 < share < 1:
        msg = f"{len(split.validation)} validation patients, share={share}; a split without a "
        msg += "validation part takes a share between 0 and 1 of its training patients"
        raise SplitError(msg)
    rng = np.random.default_rng([seed, split.repeat, split.fold, split.inner])
    chosen: set[str] = set()
    for label in sorted({labels[patient] for patient in split.train}, key=str):
        members = [patient for patient in split.train if labels[patient] == label]
        if len(members) < 2:
            msg = f"class {label!r} has one training patient in fold {split.fold}; a validation "
            msg += "part needs two or more: merge classes, or give the table a validation part"
            raise SplitError(msg)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        chosen |= {members[at] for at in rng.permutation(len(members))[:count]}
    train = tuple(patient for patient in split.train if patient not in chosen)
    return replace(split, train=train, validation=tuple(chosen))


def strata(numbers_to_predict: Sequence[float], *, bins: int = 4) -> list[int]:
    """Return the quantile bin of each number, as strata of a regression.

    >>> strata([1.0, 2.0, 30.0, 400.0], bins=2)
    [0, 0, 1, 1]
    """
    edges = np.quantile(np.asarray(numbers_to_predict), np.linspace(0, 1, bins + 1)[1:-1])
    numbers: list[int] = np.searchsorted(edges, numbers_to_predict, side="left").tolist()
    return numbers


def sorted_ids_and_classes(
    patients: Sequence[str], labels: Sequence[object]
) -> tuple[list[str], NDArray[np.int64]]:
    """Return the sorted ids, and the class number of each id."""
    if len(patients) != len(labels) or len(set(patients)) != len(patients):
        msg = (
            f"{len(patients)} patients ({len(set(patients))} different) with {len(labels)} labels; "
            "give each patient once, with one label"
        )
        raise SplitError(msg)
    order = sorted(range(len(patients)), key=lambda at: patients[at])
    names = sorted({str(label) for label in labels})
    classes = np.array([names.index(str(labels[at])) for at in order], dtype=np.int64)
    return [patients[at] for at in order], classes


def stratified(classes: NDArray[np.int64], folds: int, *seed: int) -> list[NDArray[np.int64]]:
    """Return the test rows of each fold, every class spread as evenly as possible.

    Raises:
        SplitError: Fewer than two folds, or a class with fewer patients than folds.
    """
    from sklearn.model_selection import StratifiedKFold

    least = _rarest_class_size(classes)
    if not 2 <= folds <= least:
        msg = (
            f"{folds} folds with {least} patients in the rarest class; allowed is 2 to that "
            "number: ask for fewer folds, merge classes or add patients"
        )
        raise SplitError(msg)
    state = int(np.random.SeedSequence(seed).generate_state(1)[0])
    splitter = StratifiedKFold(n_splits=folds, shuffle=True, random_state=state)
    return [test for _, test in splitter.split(np.zeros((len(classes), 1)), classes)]


def inner_splits(
    ids: Sequence[str],
    test: NDArray[np.int64],
    rest: NDArray[np.int64],
    parts: Sequence[NDArray[np.int64]],
    *,
    fold: int,
    repeat: int = 0,
    sites: Mapping[str, str] | None = None,
) -> list[Split]:
    """Return the inner splits of one test part; each of `parts` is once the validation part."""
    return [
        Split(
            train=_ids_of_rows(ids, np.setdiff1d(rest, rest[chosen])),
            validation=_ids_of_rows(ids, rest[chosen]),
            test=_ids_of_rows(ids, test),
            repeat=repeat,
            fold=fold,
            inner=number,
            sites=sites or {},
        )
        for number, chosen in enumerate(parts)
    ]


def inner_part_count(classes: NDArray[np.int64], folds: int, inner: int) -> int:
    """Return the number of parts into which `inner` inner folds cut the other patients.

    A single inner fold validates on one of several parts, as many as the number of folds and the
    rarest class allow.
    """
    if inner > 1:
        return inner
    return max(2, min(folds - 1, _rarest_class_size(classes)))


def _rarest_class_size(classes: NDArray[np.int64]) -> int:
    """Return the number of patients of the rarest present class."""
    return int(np.bincount(classes)[np.unique(classes)].min()) if len(classes) else 0


def _ids_of_rows(ids: Sequence[str], rows: Iterable[int]) -> tuple[str, ...]:
    """Return the patient ids of rows."""
    return tuple(ids[row] for row in rows)
