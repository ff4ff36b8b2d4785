"""Patients that a student was trained on: a test on them is no test of the student.

A student has seen the pixels of its training patients, and its teachers' features of them, though
never their labels. What it does on them says little about patients it has not seen.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from downstream.cohorts.cohort_errors import listing
from downstream.run.feature_bags import tile_columns
from downstream.splits.split import SplitError

if TYPE_CHECKING:
    from downstream.splits.split import Split
    from featurestore import Lake


def seen_patients(
    lake: "Lake", features: Sequence[str], slides_of: Mapping[str, Sequence[str]]
) -> dict[str, frozenset[str] | None]:
    """Return the patients that each student among feature sets was trained on.

    Args:
        lake: the lake of the features.
        features: feature sets, each one teacher or several joined by `+`.
        slides_of: slides of each patient of the cohort.

    Returns:
        Student -> patients of the cohort; None where nothing says whom it was trained on. Teachers
        are left out: nobody says whom they have seen.
    """
    from featurestore.storage import read_sealed

    # A student's column may name a pooling, and be quantised: `small~int8`.
    parts = [part for name in features for part in tile_columns(lake, name)]
    names = {part.partition(":")[0].partition("~")[0] for part in parts}
    patients_of: dict[str, frozenset[str] | None] = {}
    for name in sorted(names):
        path = f"students/{name}/report.json"
        if not lake.exists(path):
            continue
        report = read_sealed(lake.store, path)
        config = f"runs/{report.get('run')}/config.json"
        slides = set(report.get("train_slide_ids") or ())
        if not slides and lake.exists(config):
            slides = set(read_sealed(lake.store, config)["train"])
        trained = set(report.get("train_patients") or ())
        of_cohort = [p for p, own in slides_of.items() if p in trained or slides & set(own)]
        patients_of[name] = frozenset(of_cohort) if slides or trained else None
    return patients_of


def student_facts(
    patients_of: Mapping[str, frozenset[str] | None], tested: Sequence[str]
) -> dict[str, Any]:
    """Return for each student the tested patients and how many of them it was trained on."""
    return {
        name: {
            "tested": len(set(tested)),
            "trained_on": None if patients is None else len(patients & set(tested)),
        }
        for name, patients in patients_of.items()
    }


def trained_students(
    lakes: Sequence["Lake"], features: str, slides_of: Mapping[str, Sequence[str]]
) -> dict[str, frozenset[str] | None]:
    """Return the patients that each student of a feature set was trained on, from several lakes.

    A student may have been trained in another lake than the one whose patients are predicted.

    Args:
        lakes: lakes that may hold the students' reports.
        features: the feature set.
        slides_of: slides of each patient.
    """
    trained: dict[str, frozenset[str] | None] = {}
    for lake in {lake.uri: lake for lake in lakes}.values():
        for name, patients in seen_patients(lake, [features], slides_of).items():
            trained[name] = _both_known(trained.get(name), patients)
    return trained


def _both_known(one: frozenset[str] | None, other: frozenset[str] | None) -> frozenset[str] | None:
    """Return the patients of two reports of one student; None where neither names any."""
    return other if one is None else one | (other or frozenset())


def student_notes(facts: Mapping[str, Mapping[str, Any]], *, used: str = "tested") -> list[str]:
    """Return sentences on students that have seen the patients of a run or a prediction.

    Args:
        facts: facts of `student_facts`.
        used: what happens to the patients: they are `tested` or `predicted`.
    """
    notes = []
    for name, counts in facts.items():
        if counts["trained_on"] is None:
            notes.append(f"student {name!r}: nothing says which patients it was trained on")
        elif counts["trained_on"]:
            notes.append(
                f"student {name!r} was trained on {counts['trained_on']} of the "
                f"{counts['tested']} patients that are {used} here: its figures say little about "
                "patients it has not seen; --unseen-students takes others only"
            )
    return notes


def unseen_splits(
    splits: Sequence["Split"], patients_of: Mapping[str, frozenset[str] | None]
) -> tuple["Split", ...]:
    """Return the splits of the folds in which no student has seen a tested patient.

    Raises:
        SplitError: There is no such fold, or nothing says whom a student was trained on.
    """
    unknown = sorted(name for name, patients in patients_of.items() if patients is None)
    if unknown:
        msg = (
            f"unseen students: nothing says which patients {', '.join(unknown)} were trained on; "
            "train them again, or leave --unseen-students out"
        )
        raise SplitError(msg)
    trained = frozenset().union(*(patients or () for patients in patients_of.values()))
    kept = tuple(split for split in splits if not trained & set(split.test))
    if not kept:
        tested = {patient for split in splits for patient in split.test}
        unseen = sorted(tested - trained)
        msg = (
            f"unseen students: each fold tests patients that {', '.join(sorted(patients_of))} was "
            f"trained on ({len(tested & trained)} of {len(tested)}); give a split file (--splits) "
            f"that tests {listing(unseen) if unseen else 'others'} only"
        )
        raise SplitError(msg)
    return kept
