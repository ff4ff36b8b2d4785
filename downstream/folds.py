"""Splits of patients that cannot leak: nested cross-validation, by site, few-shot.

A `Split` refuses on construction any patient (or site, or slide) on two of its sides, so whatever
holds one need not check again. Shape letters: P patients.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from downstream.splits import LeakageError, SplitError, assert_disjoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Who is trained on, who decides (early stopping, thresholds), and who is scored.

    Attributes:
        train: Patient ids, sorted.
        validation: Patient ids, sorted; may be empty, then nothing may be decided.
        test: Patient ids, sorted.
        repeat: Number of the repetition.
        fold: Number of the outer fold.
        inner: Number of the inner fold.
        sites: Site of each patient where no site may be on both sides of the test; else empty.

    Raises:
        LeakageError: A patient is on two sides, or a site is on both sides of the test.
        SplitError: Nobody to train on or to test, a patient twice on one side, or one without a
            site.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    repeat: int = 0
    fold: int = 0
    inner: int = 0
    sites: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        """Refuse what leaks."""
        assert_disjoint({part: self.patients(part) for part in PARTS})
        for part in PARTS:
            ids = self.patients(part)
            if len(set(ids)) != len(ids) or (not ids and part != "validation"):
                msg = f"{part} of fold {self.fold}: {len(ids)} ids, {len(set(ids))} different; "
                msg += "name each patient once, and somebody to train on and to test"
                raise SplitError(msg)
            object.__setattr__(self, part, tuple(sorted(ids)))
        if self.sites:
            self._check_sites()

    def patients(self, part: Part) -> tuple[str, ...]:
        """Patient ids of a part.

        Raises:
            SplitError: No such part.
        """
        if part not in PARTS:
            msg = f"there is no part {part!r}; a split has {', '.join(PARTS)}"
            raise SplitError(msg)
        found: tuple[str, ...] = getattr(self, part)
        return found

    def check_fitted_on(self, patients: Iterable[str], what: str) -> None:
        """Refuse statistics, bins or a model that have seen anyone but training patients.

        Args:
            patients: Who it was fitted on.
            what: Its name, for the message.

        Raises:
            LeakageError: Somebody is not a training patient of this split.
        """
        others = sorted(set(patients) - set(self.train))
        if others:
            where = {part: sum(p in set(self.patients(part)) for p in others) for part in PARTS[1:]}
            msg = (
                f"{what} was fitted on {len(others)} patients who are not in the training part of "
                f"fold {self.fold} ({where['test']} of them are its test patients), for example "
                f"{', '.join(others[:5])}; fit it on split.train alone"
            )
            raise LeakageError(msg)

    def _check_sites(self) -> None:
        ids = [patient for part in PARTS for patient in self.patients(part)]
        unknown = [patient for patient in ids if patient not in self.sites]
        if unknown:
            msg = f"{len(unknown)} patients have no site, for example {', '.join(unknown[:5])}"
            raise SplitError(msg)
        seen = {self.sites[p] for p in (*self.train, *self.validation)}
        shared = sorted(seen & {self.sites[p] for p in self.test})
        if shared:
            msg = (
                f"{len(shared)} sites are on both sides of the test of fold {self.fold}, for "
                f"example {', '.join(shared[:5])}; leave whole sites out, with leave_site_out"
            )
            raise LeakageError(msg)


def nested_folds(
    patients: Sequence[str],
    labels: Sequence[object],
    *,
    folds: int = 5,
    inner: int = 4,
    repeats: int = 1,
    seed: int,
) -> list[Split]:
    """Stratified nested cross-validation over patients, repeated.

    Every patient is tested once a repetition. The other patients of an outer fold are split again:
    each of them is in validation once in that fold's inner splits, which all have the same test.

    Args:
        patients: One id each.
        labels: What to stratify by, one a patient: a class, an event flag, `strata` of a number.
        folds: Outer folds, at least 2.
        inner: Inner folds, at least 2; or 1 for one split with 1 / (folds - 1), at most half.
        repeats: Repetitions with other assignments.
        seed: Same patients, labels and seed, same splits, whatever the order of patients.

    Returns:
        repeats x folds x inner splits, in that order.

    Raises:
        SplitError: A class is too small, ids are not unique, or there are fewer folds than that.
    """
    ids, classes = _sorted(patients, labels)
    found: list[Split] = []
    for repeat in range(repeats):
        for fold, test in enumerate(_stratified(classes, folds, seed, repeat)):
            rest = np.setdiff1d(np.arange(len(ids)), test)
            parts = _stratified(classes[rest], _inner_parts(folds, inner), seed, repeat, fold + 1)
            found += _inner_splits(ids, test, rest, parts[:inner], repeat=repeat, fold=fold)
    return found


def leave_site_out(
    patients: Sequence[str],
    labels: Sequence[object],
    sites: Sequence[str],
    *,
    inner: int = 4,
    seed: int,
) -> list[Split]:
    """Each site is the test once; the others are split for validation, stratified over patients.

    Validation patients share sites with training patients: it decides when to stop, and does not
    claim to tell of a new site.

    Args:
        patients: One id each.
        labels: What to stratify the inner splits by.
        sites: Site of each patient (TCGA: the second part of the barcode), at least 2 of them.
        inner: Inner folds, at least 2; or 1 for one split with a quarter of the patients.
        seed: Of the inner splits.

    Returns:
        sites x inner splits; sites in sorted order are the folds.

    Raises:
        SplitError: As `nested_folds`, or one site only.
    """
    if len(sites) != len(patients) or len(set(sites)) < 2:
        msg = f"{len(set(sites))} sites of {len(sites)} for {len(patients)} patients; give one "
        msg += "each, at least two different"
        raise SplitError(msg)
    ids, classes = _sorted(patients, labels)
    site_of = dict(zip(patients, sites, strict=True))
    site_P = np.array([site_of[patient] for patient in ids])
    found: list[Split] = []
    for fold, site in enumerate(sorted(set(sites))):
        test, rest = np.flatnonzero(site_P == site), np.flatnonzero(site_P != site)
        parts = _stratified(classes[rest], _inner_parts(5, inner), seed, 0, fold + 1)
        found += _inner_splits(ids, test, rest, parts[:inner], fold=fold, sites=site_of)
    return found


def few_shot(split: Split, labels: Mapping[str, object], *, shots: int, seed: int) -> Split:
    """The split with so many training patients of each class; the other parts stay as they are.

    Args:
        split: What it starts from.
        labels: Class of each training patient, by id.
        shots: Patients of each class.
        seed: Of who is taken; those of fewer shots are among those of more.

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


def strata(values: Sequence[float], *, bins: int = 4) -> list[int]:
    """Quantile bins of a number, to stratify a regression by; not a target.

    >>> strata([1.0, 2.0, 30.0, 400.0], bins=2)
    [0, 0, 1, 1]
    """
    edges = np.quantile(np.asarray(values), np.linspace(0, 1, bins + 1)[1:-1])
    found: list[int] = np.searchsorted(edges, values, side="left").tolist()
    return found


def _sorted(
    patients: Sequence[str], labels: Sequence[object]
) -> tuple[list[str], NDArray[np.int64]]:
    """Ids in order, and the number of each one's class."""
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


def _stratified(classes: NDArray[np.int64], folds: int, *seed: int) -> list[NDArray[np.int64]]:
    """Rows of each fold, every class spread as evenly as it can be.

    Raises:
        SplitError: Fewer than two folds, or a class with fewer patients than folds.
    """
    from sklearn.model_selection import StratifiedKFold

    least = int(np.bincount(classes)[np.unique(classes)].min()) if len(classes) else 0
    if not 2 <= folds <= least:
        msg = (
            f"{folds} folds with {least} patients in the rarest class; allowed is 2 to that "
            "number: ask for fewer folds, merge classes or add patients"
        )
        raise SplitError(msg)
    state = int(np.random.SeedSequence(seed).generate_state(1)[0])
    splitter = StratifiedKFold(n_splits=folds, shuffle=True, random_state=state)
    return [test for _, test in splitter.split(np.zeros((len(classes), 1)), classes)]


def _inner_splits(
    ids: Sequence[str],
    test: NDArray[np.int64],
    rest: NDArray[np.int64],
    parts: Sequence[NDArray[np.int64]],
    *,
    fold: int,
    repeat: int = 0,
    sites: Mapping[str, str] | None = None,
) -> list[Split]:
    """One test, and the other patients split so that each of the parts validates once."""
    return [
        Split(
            train=_named(ids, np.setdiff1d(rest, rest[chosen])),
            validation=_named(ids, rest[chosen]),
            test=_named(ids, test),
            repeat=repeat,
            fold=fold,
            inner=number,
            sites=sites or {},
        )
        for number, chosen in enumerate(parts)
    ]


def _inner_parts(folds: int, inner: int) -> int:
    """How many parts to cut for so many inner folds; a single one takes one of several."""
    return max(2, folds - 1) if inner == 1 else inner


def _named(ids: Sequence[str], rows: Iterable[int]) -> tuple[str, ...]:
    return tuple(ids[row] for row in rows)
