"""The jobs: cross-validated classification and survival over feature sets of a lake."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from downstream.cohorts.cohort import keep_slides, patient_table
from downstream.cohorts.label_tables import load_labels
from downstream.cohorts.outcomes import survival_labels
from downstream.run.execution import execute, on_ray
from downstream.run.feature_bags import feature_identity, slides_with_tiles
from downstream.run.fit_settings import MIL, POOLED, PROBES, MilSettings, SurvivalSettings
from downstream.run.label_targets import (
    check_models,
    check_tails,
    event_strata,
    read_target,
    strata_of,
)
from downstream.run.study import Patient, Study, StudyError, arm_name, check_features
from downstream.splits.plans import Plan, make_splits
from downstream.survival.survival_extra import require_scikit_survival

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from numpy.typing import NDArray

    from downstream.cohorts.cohort import Cohort
    from featurestore import Lake


def run_mil(
    lake_uri: str,
    labels: str | PathLike[str],
    target: str | Sequence[str],
    features: Sequence[str],
    *,
    mpps: Sequence[float],
    models: Sequence[str] = ("abmil",),
    task: str = "auto",
    ids: Mapping[str, Any] | None = None,
    plan: Plan | None = None,
    seeds: int = 1,
    seed: int = 0,
    reference: str | None = None,
    margin: float | None = None,
    accuracy: float = 0.95,
    settings: MilSettings | None = None,
    search: int = 0,
    version: int | str | None = None,
    address: str | None = None,
    num_cpus: int | None = None,
    cpus_per_cell: float = 1.0,
    gpus_per_cell: float = 0.0,
) -> dict[str, Any]:
    """Predict classes, labels or a number from patients' tiles, cross-validated, for every arm.

    Args:
        lake_uri: The lake; its `runs/` folder gets the results.
        labels: Table with `slide_id` and/or `patient_id` and the target.
        target: Column to predict, or several of 0 and 1 that do not exclude each other; with two
            classes the last in order is the positive one.
        features: Feature sets: a teacher, or several joined by `+`.
        mpps: Microns per pixel of the tiles: one, or several nested ones for `hierarchical`.
        models: Names of `settings.MIL` or `settings.PROBES`; each on each feature set.
        task: `binary`, `multiclass`, `multilabel`, `regression`, or `auto` to see it in the column.
        ids: Options of `load_labels`: a slide table, and which columns name patients and slides.
        plan: How patients are split; five stratified folds if None.
        seeds: Trainings of every model with different random numbers.
        seed: Of folds, training and bootstrap.
        reference: Arm that the others are compared with; the first if None.
        margin: How much worse than it still counts as not worse; None for no such test.
        accuracy: Of classes: for how many patients can it answer so accurately? The confidence from
            which on it does is chosen on validation patients.
        settings: Of the models.
        search: Random draws of learning rate, weight decay, dropout and width tried in each fold,
            judged by its validation patients; 0 for none.
        version: Of the lake, or a snapshot; the newest if None.
        address: Ray cluster to join, or None for one on this machine.
        num_cpus: Cores of a cluster on this machine, or None for all of them.
        cpus_per_cell: Cores that a training reserves.
        gpus_per_cell: GPUs that a training reserves; 0.25 lets four share one.

    Returns:
        What `result.json` holds. `metrics` has per arm the main measure of the out-of-fold
        predictions with its 95 % patient-bootstrap interval, and under `measures` all others.

    Raises:
        CohortError: Labels that cannot be read, contradict themselves or miss the lake.
        SplitError: More folds than patients of the rarest class.
        LeakageError: A split file in which somebody is on two sides.
        StudyError: No feature set, one named twice, or a model that cannot do what is asked.
        BagError: A slide lacks the features of a teacher.
        LakeError: No lake there, or none with this mpp or teacher.
    """
    columns = [target] if isinstance(target, str) else list(target)
    names, plan = check_features(features), plan or Plan()
    check_models(models, (*MIL, *PROBES), mpps)
    lake, cohort, sha256 = _open(
        lake_uri,
        labels,
        columns,
        also=plan.columns,
        numbers=columns if task == "regression" else (),
        ids=ids or {},
        mpps=mpps,
        version=version,
    )
    kind, classes, outcome = read_target(cohort, columns, task)
    check_tails(settings or MilSettings(), kind, plan)
    study = Study(
        kind="mil",
        task=kind,
        lake_uri=lake.uri,
        lake_version=lake.version,
        features=names,
        models=tuple(models),
        mpps=tuple(mpps),
        splits=make_splits(plan, cohort, strata_of(kind, outcome, folds=plan.folds), seed=seed),
        seeds=seeds,
        seed=seed,
        columns=tuple(columns),
        classes=tuple(classes),
        head="",
        reference=_reference(reference, names, models),
        margin=margin,
        search=search,
        accuracy=accuracy,
        labels_sha256=sha256,
        identities=_identities(lake, names, cohort, mpps),
        settings=settings or MilSettings(),
        pooled=None,
        patients=_patients(cohort, outcome),
    )
    return execute(lake, study, cohort, on_ray(address, num_cpus, cpus_per_cell, gpus_per_cell))


def run_survival(
    lake_uri: str,
    labels: str | PathLike[str],
    time: str,
    event: str,
    features: Sequence[str],
    *,
    mpps: Sequence[float],
    models: Sequence[str] = ("cox",),
    head: str = "hazards",
    ids: Mapping[str, Any] | None = None,
    plan: Plan | None = None,
    seeds: int = 1,
    seed: int = 0,
    reference: str | None = None,
    margin: float | None = None,
    settings: MilSettings | None = None,
    search: int = 0,
    pooled: SurvivalSettings | None = None,
    version: int | str | None = None,
    address: str | None = None,
    num_cpus: int | None = None,
    cpus_per_cell: float = 1.0,
    gpus_per_cell: float = 0.0,
) -> dict[str, Any]:
    """Predict survival, cross-validated, for every arm; risks are HIGHER = WORSE.

    Args:
        lake_uri: The lake; its `runs/` folder gets the results.
        labels: Table with `slide_id` and/or `patient_id`, time and event.
        time: Column of the time to the event or to the end of follow-up.
        event: Column that is 1 where the event was seen and 0 where it was not.
        features: Feature sets: a teacher, or several joined by `+`.
        mpps: Microns per pixel of the tiles.
        models: Names of `settings.POOLED` or `settings.MIL`; each on each feature set.
        head: What a MIL model predicts: `hazards` of time bins, or `cox`, a log hazard ratio.
        ids: See `run_mil`.
        plan: See `run_mil`.
        seeds: See `run_mil`.
        seed: See `run_mil`.
        reference: See `run_mil`.
        margin: See `run_mil`.
        settings: Of MIL models.
        search: See `run_mil`.
        pooled: Of models on pooled features.
        version: See `run_mil`.
        address: See `run_mil`.
        num_cpus: See `run_mil`.
        cpus_per_cell: See `run_mil`.
        gpus_per_cell: See `run_mil`.

    Returns:
        What `result.json` holds. The main measure is Harrell's C of the out-of-fold risks, pooled
        by rank within the fold, with its 95 % patient-bootstrap interval.

    Raises:
        CohortError: See `run_mil`.
        SplitError: More folds than patients with an event.
        StudyError: See `run_mil`.
        BagError: See `run_mil`.
        LakeError: See `run_mil`.
        SurvivalError: A training fold that no model can be fitted on, or the extra `survival` is
            not installed.
    """
    require_scikit_survival()
    names, plan = check_features(features), plan or Plan()
    check_models(models, (*POOLED, *MIL), mpps)
    if head not in {"hazards", "cox"}:
        msg = f"head {head!r}; a MIL model of survival predicts hazards or cox"
        raise StudyError(msg)
    columns = [time, event]
    lake, cohort, sha256 = _open(
        lake_uri,
        labels,
        columns,
        also=plan.columns,
        numbers=[time],
        ids=ids or {},
        mpps=mpps,
        version=version,
    )
    times, events = survival_labels(cohort.patients, time, event)
    study = Study(
        kind="survival",
        task="survival",
        lake_uri=lake.uri,
        lake_version=lake.version,
        features=names,
        models=tuple(models),
        mpps=tuple(mpps),
        splits=make_splits(plan, cohort, event_strata(events, folds=plan.folds), seed=seed),
        seeds=seeds,
        seed=seed,
        columns=(time, event),
        classes=(),
        head=head,
        reference=_reference(reference, names, models),
        margin=margin,
        search=search,
        accuracy=1.0,
        labels_sha256=sha256,
        identities=_identities(lake, names, cohort, mpps),
        settings=settings or MilSettings(),
        pooled=pooled or SurvivalSettings(),
        patients=_patients(cohort, np.stack([times, events], axis=1)),
    )
    return execute(lake, study, cohort, on_ray(address, num_cpus, cpus_per_cell, gpus_per_cell))


def _reference(reference: str | None, names: Sequence[str], models: Sequence[str]) -> str:
    arms = [arm_name(features, model, models) for features in names for model in models]
    if reference is not None and reference not in arms:
        msg = f"reference {reference!r}; the arms are {', '.join(arms)}"
        raise StudyError(msg)
    return reference or arms[0]


def _open(
    lake_uri: str,
    labels: str | PathLike[str],
    columns: Sequence[str],
    *,
    also: Sequence[str],
    numbers: Sequence[str],
    ids: Mapping[str, Any],
    mpps: Sequence[float],
    version: int | str | None,
) -> tuple[Lake, Cohort, str]:
    """The lake, the cohort and the hash of the label file."""
    from featurestore import open_lake
    from featurestore.annotations import labels_of

    lake = open_lake(lake_uri, version=version)
    given = load_labels(labels_of(lake, labels), **ids)
    cohort = patient_table(lake.slides(), given, columns, also=also, numbers=numbers)
    usable = set.intersection(*(slides_with_tiles(lake, mpp=mpp) for mpp in mpps))
    return lake, keep_slides(cohort, usable), given.sha256


def _identities(
    lake: Lake, names: Sequence[str], cohort: Cohort, mpps: Sequence[float]
) -> dict[str, str]:
    """What identifies the content of each feature set on the slides in use."""
    return {
        name: "-".join(feature_identity(lake, cohort.slide_ids, name, mpp=mpp) for mpp in mpps)
        for name in names
    }


def _patients(cohort: Cohort, outcome_PK: NDArray[np.float64]) -> tuple[Patient, ...]:
    """Rows of the cohort with their outcomes."""
    rows = cohort.patients.select("patient_id", "slide_ids").iter_rows()
    return tuple(
        Patient(
            patient_id=patient_id,
            slide_ids=tuple(slide_ids),
            outcome=tuple(float(value) for value in outcome),
        )
        for (patient_id, slide_ids), outcome in zip(rows, outcome_PK, strict=True)
    )
