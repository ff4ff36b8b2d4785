"""Cross-validated classification and survival studies over feature sets of a lake."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from downstream.cohorts.cohort import Cohort, keep_slides, patient_table, with_external
from downstream.cohorts.competing import competing_labels
from downstream.cohorts.covariates import CovariateRow, covariate_notes, covariate_rows
from downstream.cohorts.label_tables import load_labels
from downstream.cohorts.outcomes import site_of, survival_labels
from downstream.cohorts.site_facts import site_facts, site_notes
from downstream.cohorts.student_patients import (
    seen_patients,
    student_facts,
    student_notes,
    unseen_splits,
)
from downstream.protocols.protocols import protocol_facts
from downstream.run.execution import execute, on_ray
from downstream.run.feature_bags import feature_identity, slides_with_tiles
from downstream.run.fit_settings import MilSettings, SurvivalSettings
from downstream.run.label_targets import (
    check_bins,
    check_covariates,
    check_models,
    check_ordered,
    check_tails,
    event_strata,
    named_classes,
    read_target,
    strata_of,
)
from downstream.run.model_tables import models_of
from downstream.run.saved_specs import save_spec
from downstream.run.study import Outcome, Patient, Study, arm_name, check_features
from downstream.run.study_errors import StudyError
from downstream.run.study_spec import (
    ComparisonOptions,
    EventMeans,
    FeatureOptions,
    Head,
    LabelOptions,
    ModelOptions,
    Resources,
    StudySpec,
    TaskName,
    label_id_options,
)
from downstream.splits.fold_plan import Plan
from downstream.splits.plans import make_splits
from downstream.survival.survival_extra import require_scikit_survival

if TYPE_CHECKING:
    from downstream.splits.split import Split
    from featurestore import Lake


def run_study(
    lake_uri: str, spec: StudySpec, *, resources: Resources | None = None
) -> dict[str, Any]:
    """Train and test every arm of a study, cross-validated over patients.

    A finished study is read back; a killed study goes on with its missing cells. Risks of
    survival studies are HIGHER = WORSE.

    Args:
        lake_uri: the lake; its `runs/` folder gets the results.
        spec: all settings that determine the result.
        resources: machines to run on; a Ray cluster on this machine if None.

    Returns:
        The content of `result.json`. `metrics` has per arm the main measure of the out-of-fold
        predictions with its 95 % patient-bootstrap interval, and under `measures` all others. The
        main measure of classes and survival is of pairs of patients within a fold (AUROC,
        Harrell's C), whose scores are of one model; `comparisons` carry the luck of training.

    Raises:
        CohortError: Labels that cannot be read, contradict themselves or miss the lake.
        SplitError: More folds than patients of the rarest class, or with an event.
        LeakageError: A split file in which a patient is in two parts of a fold.
        StudyError: No feature set, one named twice, or a model that does not fit the task.
        BagError: A slide lacks the features of a teacher.
        LakeError: No lake there, or none with this mpp or teacher.
        SurvivalError: A training fold that no model can be fitted on, or the extra `survival` is
            not installed.
    """
    from featurestore import ResultDict

    if spec.kind == "survival":
        require_scikit_survival()
    check_features(spec.features.names)
    check_models(spec.model_names, models_of(spec.kind), spec.features.mpps)
    protocol = {} if spec.protocol == "none" else {"protocol": protocol_facts(spec)}
    check_covariates(spec)
    lake, cohort, sha256 = _open_cohort(lake_uri, spec)
    cohort = replace(cohort, facts={**cohort.facts, **protocol})
    target = _targets(spec, cohort)
    splits, notes = make_splits(spec.folds, cohort, target.strata, seed=spec.seed)
    cohort = _with_sites(replace(cohort, notes=(*cohort.notes, *notes)), spec.folds, target.strata)
    cohort, splits = _with_students(lake, cohort, splits, spec.features)
    cohort = _with_covariates(cohort, spec.labels.covariates)
    study = _study(spec, lake, cohort, target, splits, sha256)
    check_bins(study)
    save_spec(lake, study.run, spec)
    result_json = execute(lake, study, cohort, on_ray(resources or Resources()))
    return ResultDict(result_json, name=spec.kind, uri=lake.uri)


# Long and with many parameters: the public function names every setting that users change.
def run_mil(
    lake_uri: str,
    labels: str | PathLike[str],
    target: str | Sequence[str],
    features: Sequence[str],
    *,
    mpps: Sequence[float],
    models: Sequence[str] = ("abmil",),
    task: str = "auto",
    order: Sequence[str] = (),
    covariates: Sequence[str] = (),
    ids: Mapping[str, Any] | None = None,
    plan: Plan | None = None,
    seeds: int = 1,
    seed: int = 0,
    reference: str | None = None,
    margin: float | None = None,
    accuracy: float = 0.95,
    settings: MilSettings | None = None,
    tune: int = 0,
    version: int | str | None = None,
    address: str | None = None,
    num_cpus: int | None = None,
    cpus_per_worker: float = 1.0,
    gpus_per_worker: float = 0.0,
) -> dict[str, Any]:
    """Predict classes, labels or a number from patients' tiles: `run_study` by single settings.

    Args:
        lake_uri: the lake; its `runs/` folder gets the results.
        labels: see `LabelOptions.table`.
        target: see `LabelOptions.target`.
        features: see `FeatureOptions.names`.
        mpps: see `FeatureOptions.mpps`.
        models: see `ModelOptions.names`.
        task: see `LabelOptions.task`.
        order: see `LabelOptions.order`.
        covariates: see `LabelOptions.covariates`.
        ids: options of `load_labels`: a slide table, and which columns name patients and slides.
        plan: plan of the folds; five stratified folds if None.
        seeds: see `ModelOptions.seeds`.
        seed: see `StudySpec.seed`.
        reference: see `ComparisonOptions.reference`.
        margin: see `ComparisonOptions.margin`.
        accuracy: see `ComparisonOptions.accuracy`.
        settings: settings of models and their training.
        tune: see `ModelOptions.tune`.
        version: see `FeatureOptions.version`.
        address: see `Resources.address`.
        num_cpus: see `Resources.num_cpus`.
        cpus_per_worker: see `Resources.cpus_per_worker`.
        gpus_per_worker: see `Resources.gpus_per_worker`.

    Returns:
        See `run_study`.

    Raises:
        ValueError: See `run_study`.

    Examples:
        >>> quick = sl.MilSettings(epochs=1)
        >>> report = sl.run_mil("my-lake", "labels.csv", "grade", ["student"], mpps=[0.5],
        ...                     plan=sl.Plan(folds=2), settings=quick)
        >>> report["metrics"]["student"]["metric"], report["task"]
        ('auroc_folds', 'binary')
    """
    columns = (target,) if isinstance(target, str) else tuple(target)
    spec = StudySpec(
        kind="mil",
        labels=LabelOptions(
            table=fspath(labels),
            target=columns,
            task=cast("TaskName", task),
            order=tuple(order),
            covariates=tuple(covariates),
            **label_id_options(ids),
        ),
        features=FeatureOptions(names=tuple(features), mpps=tuple(mpps), version=version),
        models=ModelOptions(names=_model_names(models), seeds=seeds, tune=tune),
        folds=plan or Plan(),
        fit=settings or MilSettings(),
        comparison=ComparisonOptions(reference=reference, margin=margin, accuracy=accuracy),
        seed=seed,
    )
    resources = Resources(
        address=address,
        num_cpus=num_cpus,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
    )
    return run_study(lake_uri, spec, resources=resources)


# Long and with many parameters, for the same reason.
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
    event_means: EventMeans = "auto",
    cause: str | None = None,
    censored: str = "0",
    covariates: Sequence[str] = (),
    ids: Mapping[str, Any] | None = None,
    plan: Plan | None = None,
    seeds: int = 1,
    seed: int = 0,
    reference: str | None = None,
    margin: float | None = None,
    settings: MilSettings | None = None,
    tune: int = 0,
    pooled: SurvivalSettings | None = None,
    version: int | str | None = None,
    address: str | None = None,
    num_cpus: int | None = None,
    cpus_per_worker: float = 1.0,
    gpus_per_worker: float = 0.0,
) -> dict[str, Any]:
    """Predict survival (risks are HIGHER = WORSE): `run_study` by single settings.

    Args:
        lake_uri: the lake; its `runs/` folder gets the results.
        labels: see `LabelOptions.table`.
        time: see `LabelOptions.time`.
        event: see `LabelOptions.event`.
        features: see `FeatureOptions.names`.
        mpps: see `FeatureOptions.mpps`.
        models: see `ModelOptions.names`.
        head: see `ModelOptions.head`.
        event_means: see `LabelOptions.event_means`.
        cause: see `LabelOptions.cause`.
        censored: see `LabelOptions.censored`.
        covariates: see `LabelOptions.covariates`.
        ids: see `run_mil`.
        plan: see `run_mil`.
        seeds: see `ModelOptions.seeds`.
        seed: see `StudySpec.seed`.
        reference: see `ComparisonOptions.reference`.
        margin: see `ComparisonOptions.margin`.
        settings: settings of MIL models and their training.
        tune: see `ModelOptions.tune`.
        pooled: settings of models on pooled features.
        version: see `FeatureOptions.version`.
        address: see `Resources.address`.
        num_cpus: see `Resources.num_cpus`.
        cpus_per_worker: see `Resources.cpus_per_worker`.
        gpus_per_worker: see `Resources.gpus_per_worker`.

    Returns:
        See `run_study`.

    Raises:
        ValueError: See `run_study`.

    Examples:
        >>> report = sl.run_survival("my-lake", "labels.csv", "months", "dead", ["student"],
        ...                          mpps=[0.5], plan=sl.Plan(folds=3))
        >>> report["metrics"]["student"]["metric"]
        'harrell_c_folds'
    """
    spec = StudySpec(
        kind="survival",
        labels=LabelOptions(
            table=fspath(labels),
            time=time,
            event=event,
            event_means=event_means,
            cause=cause,
            censored=censored,
            covariates=tuple(covariates),
            **label_id_options(ids),
        ),
        features=FeatureOptions(names=tuple(features), mpps=tuple(mpps), version=version),
        models=ModelOptions(
            names=_model_names(models), head=cast("Head", head), seeds=seeds, tune=tune
        ),
        folds=plan or Plan(),
        fit=settings or MilSettings(),
        pooled=pooled or SurvivalSettings(),
        comparison=ComparisonOptions(reference=reference, margin=margin),
        seed=seed,
    )
    resources = Resources(
        address=address,
        num_cpus=num_cpus,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
    )
    return run_study(lake_uri, spec, resources=resources)


def _model_names(models: Sequence[str]) -> tuple[str, ...]:
    """Return the names of models.

    Raises:
        StudyError: There is no name; a spec would use its default models.
    """
    if not models:
        msg = "no models; name at least one"
        raise StudyError(msg)
    return tuple(models)


@dataclass(frozen=True, kw_only=True)
class _Targets:
    """The outcomes of a cohort's patients.

    Attributes:
        task: task of the study.
        classes: names of the classes or labels.
        outcome: outcomes of the patients, [P, K].
        strata: stratum of each patient, for the folds.
        causes: names of competing events, the event of interest first.
    """

    task: Outcome
    classes: tuple[str, ...]
    outcome: NDArray[np.float64]
    strata: Sequence[Any]
    causes: tuple[str, ...] = ()


def _competing_targets(spec: StudySpec, cohort: Cohort) -> _Targets:
    """Return times and cause-specific events, with the cause of each patient."""
    labels = spec.labels
    causes = competing_labels(
        cohort.patients, *spec.label_columns, cause=str(labels.cause), censored=labels.censored
    )
    events = causes.cause == 1
    return _Targets(
        task="survival",
        classes=(),
        outcome=np.stack([causes.times, events, causes.cause], axis=1),
        strata=event_strata(events, folds=spec.folds.folds),
        causes=causes.names,
    )


def _targets(spec: StudySpec, cohort: Cohort) -> _Targets:
    """Return the task, the classes, and the outcome and stratum of each patient."""
    columns, folds = spec.label_columns, spec.folds.folds
    if spec.kind == "survival" and spec.labels.cause is not None:
        return _competing_targets(spec, cohort)
    if spec.kind == "survival":
        times, events = survival_labels(
            cohort.patients, *columns, event_means=spec.labels.event_means
        )
        return _Targets(
            task="survival",
            classes=(),
            outcome=np.stack([times, events], axis=1),
            strata=event_strata(events, folds=folds, inner=spec.folds.inner),
        )
    task, classes, outcome = read_target(cohort, columns, spec.labels.task, order=spec.labels.order)
    check_ordered(spec)
    check_tails(spec.fit, task, spec.folds)
    classes = named_classes(classes, spec.labels.class_names)
    return _Targets(
        task=task,
        classes=tuple(classes),
        outcome=outcome,
        strata=strata_of(task, outcome, folds=folds),
    )


def _with_sites(cohort: Cohort, plan: Plan, strata: Sequence[Any]) -> Cohort:
    """Return the cohort with the sites of its patients as a fact, and notes on them."""
    if plan.sites is None:
        return cohort
    patients = cohort.patients["patient_id"].to_list()
    sites = site_of(patients, cohort, plan.sites)
    facts = site_facts(sites, strata, plan.sites)
    notes = site_notes(facts, kept_apart=plan.split != "patient")
    return replace(
        cohort,
        notes=(*cohort.notes, *notes),
        facts={**cohort.facts, "site": facts},
        site_of=dict(zip(patients, sites, strict=True)),
    )


def _with_covariates(cohort: Cohort, names: Sequence[str]) -> Cohort:
    """Return the cohort with a note on each covariate that some patients lack."""
    if not names:
        return cohort
    rows = covariate_rows(cohort.patients, names)
    return replace(cohort, notes=(*cohort.notes, *covariate_notes(names, rows)))


def _with_students(
    lake: "Lake", cohort: Cohort, splits: tuple["Split", ...], features: FeatureOptions
) -> tuple[Cohort, tuple["Split", ...]]:
    """Return the cohort with what students have seen of it, and the splits that are run."""
    slides_of = dict(cohort.patients.select("patient_id", "slide_ids").iter_rows())
    trained_on = seen_patients(lake, features.names, slides_of)
    if features.unseen_students:
        splits = unseen_splits(splits, trained_on)
    tested = [patient for split in splits for patient in split.test]
    facts = student_facts(trained_on, tested)
    notes = (*cohort.notes, *student_notes(facts))
    return replace(cohort, notes=notes, facts={**cohort.facts, "students": facts}), splits


def _study(
    spec: StudySpec,
    lake: "Lake",
    cohort: Cohort,
    target: _Targets,
    splits: tuple["Split", ...],
    labels_sha256: str,
) -> Study:
    """Return the run of a spec on a cohort."""
    is_survival = spec.kind == "survival"
    features, models = spec.features.names, spec.model_names
    rows = covariate_rows(cohort.patients, spec.labels.covariates)
    return Study(
        kind=spec.kind,
        task=target.task,
        lake_uri=lake.uri,
        lake_version=lake.version,
        features=features,
        models=models,
        mpps=spec.features.mpps,
        splits=splits,
        seeds=spec.models.seeds,
        seed=spec.seed,
        columns=spec.label_columns,
        classes=target.classes,
        protocol="" if spec.protocol == "none" else spec.protocol,
        head=spec.models.head if is_survival else "",
        reference=_reference(spec.comparison.reference, features, models),
        margin=spec.comparison.margin,
        tune=spec.models.tune,
        # no selective prediction of survival: the accuracy does not change the run
        accuracy=1.0 if is_survival else spec.comparison.accuracy,
        guarantee=0.9 if is_survival else spec.comparison.guarantee,
        sites=spec.folds.sites or "",
        labels_sha256=labels_sha256,
        identities=_identities(lake, features, cohort, spec.features.mpps),
        settings=spec.fit,
        pooled=spec.pooled if is_survival else None,
        patients=_patients(cohort, target.outcome, rows),
        covariates=spec.labels.covariates,
        covariate_fusion=spec.models.covariate_fusion if spec.labels.covariates else "late",
        is_ordered=spec.labels.is_ordered,
        causes=target.causes,
    )


def _open_cohort(lake_uri: str, spec: StudySpec) -> tuple["Lake", Cohort, str]:
    """Return the lake, the cohort and the hash of the label file."""
    from featurestore import open_lake

    lake = open_lake(lake_uri, version=spec.features.version)
    cohort, sha256 = _cohort_of(lake, spec, spec.labels.table)
    if spec.labels.test_table is not None:
        other, more = _cohort_of(lake, spec, spec.labels.test_table)
        cohort, sha256 = with_external(cohort, other), f"{sha256}-{more}"
    usable = set.intersection(*(slides_with_tiles(lake, mpp=mpp) for mpp in spec.features.mpps))
    return lake, keep_slides(cohort, usable), sha256


def _cohort_of(lake: "Lake", spec: StudySpec, path: str) -> tuple[Cohort, str]:
    """Return the cohort of one table of labels, and the hash of the file."""
    from featurestore.annotations import labels_of

    table = load_labels(labels_of(lake, path), **spec.labels.id_options)
    columns = spec.label_columns
    numbers = columns[:1] if spec.kind == "survival" else ()
    if spec.labels.task == "regression":
        numbers = columns
    cohort = patient_table(
        lake.slides(),
        table,
        columns,
        extra_columns=spec.folds.columns,
        numbers=numbers,
        covariates=spec.labels.covariates,
    )
    return cohort, table.sha256


def _reference(reference: str | None, features: Sequence[str], models: Sequence[str]) -> str:
    """Return the name of the reference arm, the first arm by default."""
    arms = [arm_name(name, model, models) for name in features for model in models]
    arms = list(dict.fromkeys(arms))
    if reference is not None and reference not in arms:
        msg = f"reference {reference!r}; the arms are {', '.join(arms)}"
        raise StudyError(msg)
    return reference or arms[0]


def _identities(
    lake: "Lake", features: Sequence[str], cohort: Cohort, mpps: Sequence[float]
) -> dict[str, str]:
    """Return the hash of each feature set's content on the slides in use."""
    return {
        name: "-".join(feature_identity(lake, cohort.slide_ids, name, mpp=mpp) for mpp in mpps)
        for name in features
    }


def _patients(
    cohort: Cohort, outcome_PK: NDArray[np.float64], covariates: Sequence[CovariateRow]
) -> tuple[Patient, ...]:
    """Return the rows of the cohort with their outcomes and covariates."""
    rows = cohort.patients.select("patient_id", "slide_ids").iter_rows()
    return tuple(
        Patient(
            patient_id=patient_id,
            slide_ids=tuple(slide_ids),
            outcome=tuple(float(number) for number in outcome),
            covariates=beside,
        )
        for (patient_id, slide_ids), outcome, beside in zip(
            rows, outcome_PK, covariates, strict=True
        )
    )
