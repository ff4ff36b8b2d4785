"""How the patients of a run are split: folds, sites, repetitions, few shots, or a user's file."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cluster import counted
from downstream.splits.folds import few_shot, leave_site_out, nested_folds, with_validation
from downstream.splits.split import SplitError

if TYPE_CHECKING:
    from downstream.cohorts.cohort import Cohort
    from downstream.splits.fold_plan import Plan
    from downstream.splits.folds import Split


def make_splits(
    plan: "Plan", cohort: "Cohort", labels: Sequence[Any], *, seed: int
) -> tuple["Split", ...]:
    """Return the splits of a cohort.

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
    if plan.file is not None:
        splits = _from_file(plan.file, cohort, label_of, seed)
    elif plan.sites is not None:
        from downstream.cohorts.outcomes import site_of

        sites = site_of(patients, cohort, plan.sites)
        splits = leave_site_out(patients, labels, sites, inner=plan.inner, seed=seed)
    else:
        splits = nested_folds(
            patients, labels, folds=plan.folds, inner=plan.inner, repeats=plan.repeats, seed=seed
        )
    if plan.shots is not None:
        splits = [few_shot(split, label_of, shots=plan.shots, seed=seed) for split in splits]
    return tuple(splits)


def _from_file(file: str, cohort: "Cohort", label_of: dict[str, Any], seed: int) -> list["Split"]:
    """Return the splits of a user's file; a patient in none of them is an error."""
    from downstream.splits.split_files import read_splits

    file_splits = read_splits(file, cohort)
    if file_splits.surplus:
        msg = (
            f"{counted(len(file_splits.surplus), 'labelled patient', 'are')} in no split of "
            f"{file!r}, for example {', '.join(file_splits.surplus[:5])}; add them, or take them "
            "out of the "
            "labels"
        )
        raise SplitError(msg)
    return [
        split if split.validation else with_validation(split, label_of, seed=seed)
        for split in file_splits.splits
    ]
