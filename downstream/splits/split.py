"""A split of patients, never of slides or tiles, and the checks that refuse a leak.

Two slides of one patient, one in train and one in test, are a leak. A `Split` refuses on
construction any patient, or site, on two of its sides, so code that has one need not check again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

from cluster import counted

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
_MIN_FOLDS = 2


class SplitError(ValueError):
    """An error for a split that cannot be made from these labels.

    Examples:
        >>> plan = sl.Plan(folds=100)
        >>> sl.run_mil("my-lake", "labels.csv", "grade", ["student"], mpps=[0.5], plan=plan)
        Traceback (most recent call last):
            ...
        downstream.splits.split.SplitError: 100 folds with 6 patients in the rarest class; ...
    """


class LeakageError(ValueError):
    """An error for groups that must be disjoint and share members.

    Examples:
        >>> from downstream import assert_disjoint
        >>> assert_disjoint({"train": ["p01", "p02"], "test": ["p02"]})
        Traceback (most recent call last):
            ...
        downstream.splits.split.LeakageError: ...
    """


def assert_disjoint(groups: Mapping[str, Iterable[str]]) -> None:
    """Refuse a split that leaks.

    Args:
        groups: name of a group (train, test, teacher statistics, ...) -> the ids in it: patients,
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
                f"{', '.join(shared[:5])}; split by patient, with nested_folds"
            )
            raise LeakageError(msg)


@dataclass(frozen=True, kw_only=True)
class Split:
    """The training, validation (early stopping, thresholds) and test patients of one model.

    Attributes:
        train: patient ids, sorted.
        validation: patient ids, sorted; may be empty, then nothing may be decided.
        test: patient ids, sorted.
        repeat: number of the repetition.
        fold: number of the outer fold.
        inner: number of the inner fold.
        sites: site of each patient, if no site may be on both sides of the test; else empty.

    Raises:
        LeakageError: A patient is on two sides, or a site is on both sides of the test.
        SplitError: No training or no test patient, a patient twice on one side, or a patient
            without a site.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    repeat: int = 0
    fold: int = 0
    inner: int = 0
    sites: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        """Raise LeakageError if a patient or site is on two sides."""
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
        """Return the patient ids of a part.

        Raises:
            SplitError: No such part.
        """
        if part not in PARTS:
            msg = f"there is no part {part!r}; a split has {', '.join(PARTS)}"
            raise SplitError(msg)
        patients: tuple[str, ...] = getattr(self, part)
        return patients

    def check_fitted_on(self, patients: Iterable[str], statistic: str) -> None:
        """Refuse statistics, bins or a model that have seen anyone but training patients.

        Args:
            patients: ids of the patients that the statistic was fitted on.
            statistic: name of the statistic, for the message.

        Raises:
            LeakageError: One of them is not a training patient of this split.
        """
        others = sorted(set(patients) - set(self.train))
        if others:
            counts = {p: len(set(others) & set(self.patients(p))) for p in PARTS[1:]}
            msg = (
                f"{statistic} was fitted on {counted(len(others), 'patient')} outside the "
                "training part of "
                f"fold {self.fold} ({counts['test']} of them are its test patients), for example "
                f"{', '.join(others[:5])}; fit it on split.train alone"
            )
            raise LeakageError(msg)

    def _check_sites(self) -> None:
        """Raise an error if a patient has no site, or a site is on both sides of the test."""
        ids = [patient for part in PARTS for patient in self.patients(part)]
        unknown = [patient for patient in ids if patient not in self.sites]
        if unknown:
            msg = (
                f"{counted(len(unknown), 'patient', 'have')} no site, for example "
                f"{', '.join(unknown[:5])}"
            )
            raise SplitError(msg)
        other_sites = {self.sites[p] for p in (*self.train, *self.validation)}
        shared = sorted(other_sites & {self.sites[p] for p in self.test})
        if shared:
            msg = (
                f"{counted(len(shared), 'site', 'are')} on both sides of the test of fold "
                f"{self.fold}, for "
                f"example {', '.join(shared[:5])}; leave whole sites out, with leave_site_out"
            )
            raise LeakageError(msg)
