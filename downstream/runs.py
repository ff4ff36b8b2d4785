"""The jobs: cross-validated classification and survival over feature sets of a lake.

A finished run is read back without starting Ray; a killed one goes on with the missing cells.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Protocol

from downstream.bags import feature_identity, slides_with_tiles
from downstream.cells import run_cell
from downstream.cohort import keep_slides, parse_labels, patient_table, read_label_bytes
from downstream.outcomes import class_labels, survival_labels
from downstream.results import collect, find_result, is_finished
from downstream.settings import AbmilSettings, CoxSettings
from downstream.splits import patient_folds
from downstream.study import Patient, Study, check_features

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    import numpy as np
    from numpy.typing import NDArray

    from downstream.cohort import Cohort
    from downstream.study import Cell
    from featurestore import Lake

_ABMIL, _COX = AbmilSettings(), CoxSettings()


class RunCells(Protocol):
    """Runs cells somewhere and returns when all are stored."""

    def __call__(self, cells: Sequence[Cell], *, finished: int) -> None:
        """Run them all, in any order; so many others were finished before."""


def run_mil(
    lake_uri: str,
    labels: str | PathLike[str],
    target: str,
    features: list[str],
    *,
    mpp: float,
    folds: int = 5,
    seed: int = 0,
    version: int | str | None = None,
    epochs: int = _ABMIL.epochs,
    learning_rate: float = _ABMIL.learning_rate,
    max_tiles: int = _ABMIL.max_tiles,
    address: str | None = None,
    num_cpus: int | None = None,
) -> dict[str, Any]:
    """Classify patients by attention MIL, cross-validated, for every feature set.

    Args:
        lake_uri: The lake; its `runs/` folder gets the results.
        labels: CSV or Parquet file with `slide_id` and/or `patient_id` and the target.
        target: Column to predict; with two classes the last in order is the positive one.
        features: Feature sets: a teacher, or several joined by `+`.
        mpp: Microns per pixel of the tiles.
        folds: Folds over patients, stratified by class.
        seed: Of folds, training and bootstrap.
        version: Of the lake, or a snapshot; the newest if None.
        epochs: Passes over the training patients; fixed, there is no early stopping.
        learning_rate: AdamW step size.
        max_tiles: Most tiles of a patient in one training step.
        address: Ray cluster to join, or None for one on this machine.
        num_cpus: Cores of a cluster on this machine, or None for all of them.

    Returns:
        What `result.json` holds. `metrics` has per feature set the AUROC of the pooled
        out-of-fold probabilities with its 95 % patient-bootstrap interval.

    Raises:
        CohortError: Labels that cannot be read, contradict themselves or miss the lake.
        SplitError: More folds than patients of the rarest class.
        StudyError: No feature set, or one named twice.
        BagError: A slide lacks the features of a teacher, or teachers have different tiles.
        LakeError: No lake there, or none with this mpp or teacher.
    """
    names = check_features(features)
    lake, cohort, sha256 = _open(lake_uri, labels, [target], mpp=mpp, version=version)
    classes, label = class_labels(cohort.patients, target)
    fold = patient_folds(label, folds, seed)
    study = Study(
        kind="mil",
        lake_uri=lake.uri,
        lake_version=lake.version,
        features=names,
        mpp=mpp,
        folds=folds,
        seed=seed,
        columns=(target,),
        classes=tuple(classes),
        labels_sha256=sha256,
        identities=_identities(lake, names, cohort, mpp),
        settings=AbmilSettings(epochs=epochs, learning_rate=learning_rate, max_tiles=max_tiles),
        patients=_patients(cohort, fold, label),
    )
    return execute(lake, study, cohort, _on_ray(address, num_cpus))


def run_survival(
    lake_uri: str,
    labels: str | PathLike[str],
    time: str,
    event: str,
    features: list[str],
    *,
    mpp: float,
    folds: int = 5,
    seed: int = 0,
    version: int | str | None = None,
    components: int = _COX.components,
    alpha: float = _COX.alpha,
    address: str | None = None,
    num_cpus: int | None = None,
) -> dict[str, Any]:
    """Predict survival by a Cox model on pooled features, cross-validated, per feature set.

    Args:
        lake_uri: The lake; its `runs/` folder gets the results.
        labels: CSV or Parquet file with `slide_id` and/or `patient_id`, time and event.
        time: Column of the time to the event or to the end of follow-up.
        event: Column that is 1 where the event was seen and 0 where it was not.
        features: Feature sets: a teacher, or several joined by `+`.
        mpp: Microns per pixel of the tiles.
        folds: Folds over patients, stratified by event.
        seed: Of folds and bootstrap.
        version: Of the lake, or a snapshot; the newest if None.
        components: Principal components kept.
        alpha: Ridge penalty per unit of feature variance.
        address: Ray cluster to join, or None for one on this machine.
        num_cpus: Cores of a cluster on this machine, or None for all of them.

    Returns:
        What `result.json` holds. `metrics` has per feature set Harrell's C of the out-of-fold
        risks (HIGHER = WORSE), pooled by rank within the fold, with its 95 % patient-bootstrap
        interval.

    Raises:
        CohortError: Labels that cannot be read, contradict themselves or miss the lake.
        SplitError: More folds than patients with, or without, an event.
        StudyError: No feature set, or one named twice.
        BagError: A slide lacks the features of a teacher, or teachers have different tiles.
        LakeError: No lake there, or none with this mpp or teacher.
        SurvivalError: A training fold that no Cox model can be fitted on.
    """
    names = check_features(features)
    lake, cohort, sha256 = _open(lake_uri, labels, [time, event], mpp=mpp, version=version)
    times, events = survival_labels(cohort.patients, time, event)
    fold = patient_folds(events, folds, seed)
    study = Study(
        kind="survival",
        lake_uri=lake.uri,
        lake_version=lake.version,
        features=names,
        mpp=mpp,
        folds=folds,
        seed=seed,
        columns=(time, event),
        classes=(),
        labels_sha256=sha256,
        identities=_identities(lake, names, cohort, mpp),
        settings=CoxSettings(components=components, alpha=alpha),
        patients=_patients(cohort, fold, times, events),
    )
    return execute(lake, study, cohort, _on_ray(address, num_cpus))


def execute(lake: Lake, study: Study, cohort: Cohort, run_cells: RunCells) -> dict[str, Any]:
    """Finish a run: find its result, or run the cells that are missing and put them together.

    Args:
        lake: The lake, open.
        study: The run.
        cohort: Where its patients come from; for what is missing and surplus.
        run_cells: Runs cells and stores them.

    Returns:
        What `result.json` holds.
    """
    found = find_result(lake, study.run)
    if found is not None:
        return found
    cells = study.cells()
    todo = [cell for cell in cells if not is_finished(lake, cell)]
    if todo:
        run_cells(todo, finished=len(cells) - len(todo))
    return collect(lake, study, missing=cohort.missing, surplus=cohort.surplus)


def _open(
    lake_uri: str,
    labels: str | PathLike[str],
    columns: Sequence[str],
    *,
    mpp: float,
    version: int | str | None,
) -> tuple[Lake, Cohort, str]:
    """The lake, the cohort and the hash of the label file."""
    from featurestore import open_lake

    lake = open_lake(lake_uri, version=version)
    content = read_label_bytes(labels)
    cohort = patient_table(lake.slides(), parse_labels(content, name=str(labels)), columns)
    cohort = keep_slides(cohort, slides_with_tiles(lake, mpp=mpp))
    return lake, cohort, hashlib.sha256(content).hexdigest()


def _identities(lake: Lake, names: Sequence[str], cohort: Cohort, mpp: float) -> dict[str, str]:
    """What identifies the content of each feature set on the slides in use."""
    return {name: feature_identity(lake, cohort.slide_ids, name, mpp=mpp) for name in names}


def _patients(
    cohort: Cohort, fold: NDArray[np.int64], *outcomes: NDArray[Any]
) -> tuple[Patient, ...]:
    """Rows of the cohort with their folds and outcomes."""
    rows = cohort.patients.select("patient_id", "slide_ids").iter_rows()
    return tuple(
        Patient(
            patient_id=patient_id,
            slide_ids=tuple(slide_ids),
            fold=int(fold),
            outcome=tuple(float(value) for value in outcome),
        )
        for (patient_id, slide_ids), fold, *outcome in zip(rows, fold, *outcomes, strict=True)
    )


def _on_ray(address: str | None, num_cpus: int | None) -> RunCells:
    """Run cells as Ray tasks: on a cluster, or on this machine."""

    def run_cells(cells: Sequence[Cell], *, finished: int) -> None:
        from cluster import progress, ray_map, ray_session

        session = ray_session(address=address, num_cpus=num_cpus, ray_data=False)
        title, total = cells[0].study.kind, finished + len(cells)
        with session, progress(title, total=total, initial=finished, unit="cells") as bar:
            for _ in ray_map(run_cell, cells):
                bar.advance(1)

    return run_cells
