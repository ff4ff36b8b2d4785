"""A run's models on the slides of a lake: one row per patient.

Models of all folds, repetitions and seeds are averaged. A patient of the run itself is predicted
only by models that were not trained on them.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from cluster import counted
from downstream.cohorts.cohort import patient_table
from downstream.cohorts.cohort_errors import listing
from downstream.cohorts.covariates import CovariateRow, table_rows
from downstream.cohorts.label_tables import Reading, load_labels
from downstream.cohorts.student_patients import student_facts, student_notes, trained_students
from downstream.kept.kept_model import KeptModelError
from downstream.kept.lake_patients import LakePatients
from downstream.kept.patient_rows import patient_rows
from downstream.kept.run_models import models_of_run, owners_of_slides
from downstream.report.finished_run import RunError, read_run
from downstream.report.heatmaps.heatmap_files import HeatmapFolder
from downstream.run.feature_bags import (
    column_identity,
    feature_width,
    slides_with_features,
    slides_with_tiles,
    teachers_of,
)

if TYPE_CHECKING:
    from downstream.report.finished_run import Run
    from featurestore import Lake

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
            (a risk: HIGHER = WORSE). `fold` is the fold of the run in which a seen patient is
            tested ("REPETITION.FOLD", several where the run has repetitions; None of others); where
            a student is among the features, `student_trained` is whether it was trained on the
            patient (None where nothing says so).
        task: task of the run.
        arm: name of the arm.
        run: name of the run.
        lost: patients or slides that are not predicted, with the reason.
        notes: sentences on students that have seen these patients.
        heatmaps: the folder of heatmaps; None where none were asked for.

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
    notes: tuple[str, ...] = ()
    heatmaps: "HeatmapFolder | None" = None


# Long by its docstring: the public function names its errors and has an example.
def predict_patients(
    lake_uri: str,
    run: str,
    *,
    run_lake: str | None = None,
    arm: str | None = None,
    covariates: str | PathLike[str] | None = None,
    version: int | str | None = None,
    unseen_students: bool = False,
    heatmaps: str | PathLike[str] | None = None,
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
        unseen_students: whether patients that a student among the features was trained on are left
            out.
        heatmaps: local folder for pictures, GeoJSON and top tiles of every slide, with a page; what
            is there whole is not drawn again. None for none.

    Returns:
        A row per patient with ready slides that have the features. In the run's own lake a slide of
        the run has the patient that the run's labels gave it; others have the lake's; slides
        without one are patients of their own.

    Raises:
        RunError: There is no such run, or no such arm.
        KeptModelError: The run keeps no models, or the lake's columns are of another encoder,
            mpp or tile size; heatmaps of a model that does not weigh tiles; nothing says whom a
            student was trained on that is to be unseen; or the run has covariates and no table of
            them is given, or the reverse.

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
    trained_on = trained_students([home, lake], features, slides_of)
    if unseen_students:
        lost += _without_seen(reader, trained_on)
    folder = None if heatmaps is None else HeatmapFolder(lake=lake, folder=Path(heatmaps))
    rows, left_out = patient_rows(
        finished, models, reader, owner_of, trained_on=trained_on, heatmaps=folder, arm=name
    )
    predicted = [row["patient_id"] for row in rows]
    facts = student_facts(trained_on, predicted)
    return PatientPredictions(
        rows=pl.DataFrame(rows, infer_schema_length=None),
        task=finished.task,
        arm=name,
        run=run,
        lost=(*lost, *left_out),
        notes=tuple(student_notes(facts, used="predicted")),
        heatmaps=folder,
    )


def _without_seen(
    reader: LakePatients, trained_on: Mapping[str, frozenset[str] | None]
) -> list[str]:
    """Take the patients that a student was trained on out of the reader; return them with why.

    Raises:
        KeptModelError: Nothing says whom a student was trained on, or no other patient is left.
    """
    unknown = sorted(name for name, patients in trained_on.items() if patients is None)
    if unknown:
        msg = (
            f"unseen students: nothing says which patients {', '.join(unknown)} were trained on; "
            "train them again, or leave --unseen-students out"
        )
        raise KeptModelError(msg)
    lost = [
        f"{patient}: student {student!r} was trained on this patient"
        for student, patients in trained_on.items()
        for patient in sorted(patients or ())
        if reader.slides_of.pop(patient, None) is not None
    ]
    if not reader.slides_of:
        msg = (
            f"unseen students: {', '.join(trained_on)} was trained on all "
            f"{counted(len(lost), 'patient')} of the lake; leave --unseen-students out to predict "
            "them all the same"
        )
        raise KeptModelError(msg)
    return lost


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
    readings: dict[str, Reading] = {
        name: "texts" if name in config["categories"] else "numbers" for name in names
    }
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
            feature_width(lake, teacher, mpp=mpp)
            ours, trained = (
                column_identity(lake, teacher, mpp=mpp),
                identities.get(f"{teacher}@{mpp}"),
            )
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
            usable &= slides_with_features(lake, teacher, mpp=mpp)
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
