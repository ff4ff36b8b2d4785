"""A run's models on the slides of a lake: one row per patient.

Models of all folds, repetitions and seeds are averaged. A patient of the run itself is predicted
only by models that were not trained on them.

Shape letters: P patients, C classes, M models.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cluster import counted, progress
from downstream.cohorts.cohort import patient_table
from downstream.cohorts.cohort_errors import listing
from downstream.cohorts.covariates import CovariateRow, table_rows
from downstream.cohorts.label_tables import load_labels
from downstream.kept.kept_model import KeptModelError
from downstream.kept.run_models import RunModel, models_of_run, owners_of_slides
from downstream.report.finished_run import RunError, read_run
from downstream.run.feature_bags import (
    pooled_bag,
    read_patient,
    slides_with_tiles,
    teachers_of,
)

if TYPE_CHECKING:
    from downstream.report.finished_run import Run
    from downstream.run.feature_bags import PatientBag
    from featurestore import Lake

Floats = NDArray[np.float64]

_IN_TABLE = "is in the table of covariates"


@dataclass(frozen=True, kw_only=True)
class PatientPredictions:
    """Predictions of one arm of a run for patients of a lake.

    Attributes:
        rows: a row per patient: `patient_id`, `slide_ids`, `seen` (whether the run has the patient:
            then only the models that were not trained on them predict), `models` (their number);
            of classes `predicted`, `answered` (None where the run could not choose), `score` (of
            class 1 of two, else of the predicted class), `low` and `high` (least and greatest over
            models), `p_CLASS`; of labels `p_LABEL`; of a number or survival `score`, `low`, `high`
            (a risk: HIGHER = WORSE).
        task: task of the run.
        arm: name of the arm.
        run: name of the run.
        lost: patients or slides that are not predicted, with the reason.

    Examples:
        >>> nobody = pl.DataFrame()
        >>> sl.PatientPredictions(rows=nobody, task="binary", arm="uni2_h", run="mil-1").lost
        ()
    """

    rows: pl.DataFrame
    task: str
    arm: str
    run: str
    lost: tuple[str, ...] = ()


class LakePatients:
    """Bags and pooled features of a lake's patients, one in memory at a time.

    Args:
        lake: the lake that holds the features.
        slides_of: slides of each patient.
        features: name of the feature set.
        mpps: microns per pixel of the tiles.
        covariates: covariates of each patient by name; None where there is no table of them.
    """

    def __init__(
        self,
        lake: "Lake",
        slides_of: Mapping[str, Sequence[str]],
        features: str,
        mpps: Sequence[float],
        covariates: Mapping[str, CovariateRow] | None = None,
    ) -> None:
        self._covariates = covariates
        self._lake, self.slides_of = lake, slides_of
        self._features, self._mpps = features, mpps
        self._last: tuple[str, PatientBag] | None = None
        self._vector: tuple[str, Floats] | None = None

    def bag(self, patient_id: str) -> "PatientBag":
        """Return the bag of a patient: all tiles of all slides."""
        if self._last is None or self._last[0] != patient_id:
            slides = self.slides_of[patient_id]
            self._last = (
                patient_id,
                read_patient(self._lake, slides, self._features, self._mpps),
            )
        return self._last[1]

    def pooled(self, ids: Sequence[str]) -> Floats:
        """Return one vector per patient [P, D]."""
        return np.stack([self._vector_of(one) for one in ids])

    def covariates(self, names: Sequence[str], ids: Sequence[str]) -> list[CovariateRow]:
        """Return the covariates of patients.

        Raises:
            KeptModelError: There is no table of covariates.
        """
        if self._covariates is None:
            msg = f"the model takes covariates ({', '.join(names)}); give a table of them"
            raise KeptModelError(msg)
        return [self._covariates[one] for one in ids]

    def _vector_of(self, patient_id: str) -> Floats:
        if self._vector is None or self._vector[0] != patient_id:
            self._vector = (patient_id, pooled_bag(self.bag(patient_id)))
        return self._vector[1]


# Long by its docstring: the public function names its errors and has an example.
def predict_patients(
    lake_uri: str,
    run: str,
    *,
    run_lake: str | None = None,
    arm: str | None = None,
    covariates: str | PathLike[str] | None = None,
    version: int | str | None = None,
) -> PatientPredictions:
    """Apply the models that a run keeps to all patients of a lake.

    Args:
        lake_uri: the lake whose slides are predicted.
        run: name of a finished run of `run_mil` or `run_survival`.
        run_lake: the lake that holds the run; None if it is the same.
        arm: arm of the run; the first if None.
        covariates: table with the covariates of the run, where it has any, in the columns that the
            run's labels had. What is missing for a patient is filled in as in training; a patient
            who is not in the table is not predicted.
        version: version of the lake, or a snapshot; the newest if None.

    Returns:
        A row per patient with ready slides that have the features. In the run's own lake a slide of
        the run has the patient that the run's labels gave it; others have the lake's; slides
        without one are patients of their own.

    Raises:
        RunError: There is no such run, or no such arm.
        KeptModelError: The run keeps no models, or the lake's columns are of another encoder,
            mpp or tile size; or it has covariates and no table of them is given, or the reverse.

    Examples:
        >>> quick = sl.MilSettings(epochs=1)
        >>> report = sl.run_mil("my-lake", "labels.csv", "grade", ["student"], mpps=[0.5],
        ...                     plan=sl.Plan(folds=2), settings=quick)
        >>> found = sl.predict_patients("my-lake", report["run"])
        >>> found.rows["seen"].all(), found.task
        (True, 'binary')
    """
    from featurestore import open_lake

    lake = open_lake(lake_uri, version=version)
    home = lake if run_lake is None else open_lake(run_lake)
    finished = read_run(home, run)
    name = _arm(finished, arm)
    models = models_of_run(home, finished, name)
    features = finished.result["arms"][name]["features"]
    _check_columns(lake, home, finished, features)
    owner_of = owners_of_slides(home, finished)
    here = owner_of if home.uri == lake.uri else {}
    slides_of, lost = _slides_of(lake, finished, features, here)
    if not slides_of:
        msg = f"no ready slide of {lake.uri} has features of {features!r}: {listing(lost)}"
        raise KeptModelError(msg)
    rows_of = _covariates(lake, finished, covariates)
    if rows_of is not None:
        absent = [one for one in slides_of if one not in rows_of]
        lost += [f"{one}: not in the table of covariates" for one in absent]
        slides_of = {one: slides for one, slides in slides_of.items() if one in rows_of}
    reader = LakePatients(lake, slides_of, features, finished.result["config"]["mpps"], rows_of)
    rows = _rows(finished, models, reader, owner_of, lost)
    return PatientPredictions(
        rows=pl.DataFrame(rows, infer_schema_length=None),
        task=finished.task,
        arm=name,
        run=run,
        lost=tuple(lost),
    )


def _rows(
    run: "Run",
    models: Sequence[RunModel],
    reader: LakePatients,
    owner_of: Mapping[str, str],
    lost: list[str],
) -> list[dict[str, Any]]:
    """Return the row of each patient; whom every model was trained on is added to `lost`.

    A patient is known by the id, and by the slides: the labels of the run may have named patients
    whom the lake does not know, or knows by another name.
    """
    in_run = {patient for model in models for patient in (*model.trained_on, *model.split.test)}
    rows = []
    with progress("predict", total=len(reader.slides_of), unit="patients") as bar:
        for patient, slides in reader.slides_of.items():
            names = {patient, *(owner_of[slide] for slide in slides if slide in owner_of)}
            fresh = [model for model in models if not names & model.trained_on]
            if fresh:
                row: dict[str, Any] = {"patient_id": patient, "slide_ids": list(slides)}
                row["seen"] = bool(names & in_run)
                rows.append({**row, **_row(run, fresh, reader, patient)})
            else:
                lost.append(f"{patient}: every model was trained on this patient")
            bar.advance(1)
    return rows


def _covariates(
    lake: "Lake", run: "Run", path: str | PathLike[str] | None
) -> dict[str, CovariateRow] | None:
    """Return the covariates of each patient of a table; None for a run without covariates.

    Raises:
        KeptModelError: A table for a run without covariates, none for one with them, or a table
            with none of the lake's patients.
        CohortError: The table lacks a covariate, or has other cells than the run's labels had.
    """
    from featurestore.annotations import labels_of

    config = run.result["config"]
    names = config.get("covariates", [])
    if not names:
        if path is not None:
            msg = f"run {run.name} has no covariates; leave out the table of covariates"
            raise KeptModelError(msg)
        return None
    if path is None:
        msg = (
            f"run {run.name} takes covariates ({', '.join(names)}); give a table with these "
            "columns by --covariates (covariates in Python)"
        )
        raise KeptModelError(msg)
    readings = {name: "texts" if name in config["categories"] else "numbers" for name in names}
    table = load_labels(labels_of(lake, fspath(path))).read(readings)
    # every row counts, also one whose covariates are all unknown
    marked = table.table.with_columns(pl.lit(1).alias(_IN_TABLE))
    whole = replace(table, source=None, table=marked)
    patients = patient_table(lake.slides(), whole, [_IN_TABLE], covariates=names).patients
    ids = patients["patient_id"].to_list()
    return dict(zip(ids, table_rows(patients, names), strict=True))


def _arm(run: "Run", arm: str | None) -> str:
    """Return the arm's name; the first if none is given.

    Raises:
        RunError: The run has no such arm, or is no study of patients.
    """
    if run.unit != "patient":
        msg = f"{run.name} is a probe of tiles; predict applies runs of mil and survival"
        raise RunError(msg)
    if arm is not None and arm not in run.arms:
        msg = f"run {run.name} has no arm {arm!r}; it has {', '.join(run.arms)}"
        raise RunError(msg)
    return arm or run.arms[0]


def _check_columns(lake: "Lake", home: "Lake", run: "Run", features: str) -> None:
    """Refuse columns that are not what the models were trained on.

    Raises:
        KeptModelError: Names the column and what differs.
    """
    identities, mpps = run.result.get("columns", {}), run.result["config"]["mpps"]
    if lake.config.tile_px != home.config.tile_px:
        msg = (
            f"tiles of {lake.uri} have {lake.config.tile_px} px, those of the run "
            f"{home.config.tile_px} px; its models fit tiles of the same size"
        )
        raise KeptModelError(msg)
    for teacher in teachers_of(features):
        for mpp in mpps:
            lake.check_teacher(teacher, mpp=mpp)
            ours, trained = lake.identity(teacher, mpp=mpp), identities.get(f"{teacher}@{mpp}")
            if trained is None or ours == trained:
                continue
            apart = sorted(k for k in {*ours, *trained} if ours.get(k) != trained.get(k))
            shown = [f"{k} is {ours.get(k)!r}, was {trained.get(k)!r}" for k in apart[:3]]
            msg = (
                f"column {teacher!r} at {mpp} mpp of {lake.uri} is not what the run has seen: "
                f"{', '.join(shown)}; extract the run's encoder here"
            )
            raise KeptModelError(msg)


def _slides_of(
    lake: "Lake", run: "Run", features: str, owner_of: Mapping[str, str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Return the slides of each patient that have all features, and what is left out."""
    slides = lake.slides().filter(pl.col("state") == "ready").collect()
    usable = set(slides["slide_id"])
    for mpp in run.result["config"]["mpps"]:
        usable &= slides_with_tiles(lake, mpp=mpp)
        for teacher in teachers_of(features):
            usable &= set(lake.features_of(teacher, mpp=mpp)["slide_id"])
    slides_of: dict[str, list[str]] = defaultdict(list)
    lost = []
    for slide, patient in slides.select("slide_id", "patient_id").sort("slide_id").iter_rows():
        if slide in usable:
            slides_of[owner_of.get(slide) or patient or slide].append(slide)
        else:
            lost.append(f"{slide}: no tiles, or no features of {features}")
    pending = lake.slides().filter(pl.col("state") == "pending").collect().height
    if pending:
        lost.append(f"{counted(pending, 'slide')} pending")
    return dict(sorted(slides_of.items())), lost


def _row(
    run: "Run", models: Sequence[RunModel], reader: LakePatients, patient: str
) -> dict[str, Any]:
    """Return the columns of one patient's prediction."""
    outcomes = [one.apply(reader, [patient]).outcome[0] for one in models]
    if run.task in {"regression", "survival"}:
        scores = np.array(outcomes, dtype=np.float64)
        return {"models": len(models), **_limits(scores)}
    outcome_MC = np.stack(outcomes)
    mean_C = outcome_MC.mean(axis=0)
    shares = {f"p_{name}": float(p) for name, p in zip(run.classes, mean_C, strict=True)}
    if run.task == "multilabel":
        return {"models": len(models), **shares}
    likeliest = int(mean_C.argmax())
    shown = 1 if run.task == "binary" else likeliest
    if run.task == "binary":
        # folds have thresholds of their own: scores are moved so that each fold's is at one half
        moved = [
            p[1] - (0.5 if one.threshold is None else one.threshold) + 0.5
            for p, one in zip(outcome_MC, models, strict=True)
        ]
        likeliest = int(np.mean(moved) >= 0.5)
    levels = [one.answers_from for one in models if one.answers_from is not None]
    answered = bool(mean_C.max() >= np.median(levels)) if levels else None
    return {
        "models": len(models),
        "predicted": run.classes[likeliest],
        "answered": answered,
        **_limits(outcome_MC[:, shown]),
        **shares,
    }


def _limits(scores_M: Floats) -> dict[str, float]:
    """Return the mean over models, and the least and the greatest."""
    return {
        "score": float(scores_M.mean()),
        "low": float(scores_M.min()),
        "high": float(scores_M.max()),
    }
