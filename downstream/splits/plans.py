"""How the patients of a run are split: folds, sites, repetitions, few shots, or a user's file."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cluster import counted
from downstream.cohorts.cohort_errors import listing
from downstream.splits.folds import few_shot, nested_folds, with_validation
from downstream.splits.random_splits import external_splits, monte_carlo_splits
from downstream.splits.site_folds import leave_site_out, preserved_site_folds
from downstream.splits.split import SplitError

if TYPE_CHECKING:
    from downstream.cohorts.cohort import Cohort
    from downstream.splits.fold_plan import Plan
    from downstream.splits.folds import Split


def make_splits(
    plan: "Plan", cohort: "Cohort", labels: Sequence[Any], *, seed: int
) -> tuple[tuple["Split", ...], tuple[str, ...]]:
    """Return the splits of a cohort, and notes on what a split file says and leaves out.

    Args:
        plan: plan of the folds.
        cohort: cohort whose patients are split.
        labels: stratum of each patient.
        seed: seed of the splits.

    Raises:
        SplitError: The plan cannot split the cohort.
        LeakageError: A split file has a patient on two sides.
    """
    patients = cohort.patients["patient_id"].to_list()
    label_of = dict(zip(patients, labels, strict=True))
    notes: tuple[str, ...] = ()
    if cohort.external:
        splits = _external(plan, cohort, label_of, seed)
    elif plan.file is not None:
        splits, notes = _from_file(plan, cohort, label_of, seed)
    elif plan.split == "monte-carlo":
        _refuse_inner(plan)
        splits = monte_carlo_splits(patients, labels, count=plan.folds, seed=seed)
    elif plan.split != "patient":
        splits = _by_site(plan, cohort, labels, seed)
    else:
        splits = nested_folds(
            patients, labels, folds=plan.folds, inner=plan.inner, repeats=plan.repeats, seed=seed
        )
    if plan.shots is not None:
        splits = [few_shot(split, label_of, shots=plan.shots, seed=seed) for split in splits]
    return tuple(splits), notes


def _by_site(plan: "Plan", cohort: "Cohort", labels: Sequence[Any], seed: int) -> "list[Split]":
    """Return splits in which no site is on both sides of the test."""
    from downstream.cohorts.outcomes import site_of

    if plan.sites is None:
        msg = f"split {plan.split!r} needs the sites; name their column by --site (or tcga)"
        raise SplitError(msg)
    if plan.repeats > 1:
        msg = f"split {plan.split!r} has one way to split; leave repeats={plan.repeats} out"
        raise SplitError(msg)
    patients = cohort.patients["patient_id"].to_list()
    sites = site_of(patients, cohort, plan.sites)
    if plan.split == "site":
        return leave_site_out(patients, labels, sites, inner=plan.inner, seed=seed)
    return preserved_site_folds(
        patients, labels, sites, folds=plan.folds, inner=plan.inner, seed=seed
    )


def _external(plan: "Plan", cohort: "Cohort", label_of: dict[str, Any], seed: int) -> "list[Split]":
    """Return the splits that test all patients of the other table.

    Raises:
        SplitError: The plan has splits of its own.
    """
    if plan.file is not None or plan.split != "patient":
        choice = f"a split file ({plan.file})" if plan.file else f"split {plan.split!r}"
        msg = f"a table of test patients splits by itself: all of it is tested; leave {choice} out"
        raise SplitError(msg)
    return external_splits(
        label_of, cohort.external, inner=plan.inner, validation=plan.validation, seed=seed
    )


def _refuse_inner(plan: "Plan") -> None:
    """Refuse inner splits and repetitions of random splits.

    Raises:
        SplitError: There are any.
    """
    if plan.inner > 1 or plan.repeats > 1:
        msg = (
            f"split 'monte-carlo' with inner={plan.inner}, repeats={plan.repeats}; each of its "
            "splits has one validation part, and more of them are asked for by folds"
        )
        raise SplitError(msg)


def _from_file(
    plan: "Plan", cohort: "Cohort", label_of: dict[str, Any], seed: int
) -> tuple[list["Split"], tuple[str, ...]]:
    """Return the splits of a user's file, with notes; a patient in none of them is an error."""
    from downstream.splits.split_files import read_splits

    file = str(plan.file)
    file_splits = read_splits(file, cohort)
    if file_splits.surplus:
        msg = (
            f"{counted(len(file_splits.surplus), 'labelled patient', 'are')} in no split of "
            f"{file!r}, for example {', '.join(file_splits.surplus[:5])}; add them, or take them "
            "out of the "
            "labels"
        )
        raise SplitError(msg)
    notes = list(file_splits.notes)
    if file_splits.missing:
        notes.append(
            f"{len(file_splits.missing)} ids of {file!r} are not in the study: "
            f"{listing(file_splits.missing)}"
        )
    splits = [
        split
        if split.validation or not plan.validation
        else with_validation(split, label_of, seed=seed)
        for split in file_splits.splits
    ]
    return splits, tuple(notes)
