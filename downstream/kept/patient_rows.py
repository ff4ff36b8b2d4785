"""The row of each patient that a run's models predict, and the attention of the patient's slides.

Shape letters: P patients, C classes, M models, N tiles.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cluster import progress
from downstream.kept.kept_model import KeptModelError
from downstream.report.heatmaps.heatmap_files import HeatmapFolder, SlideHeatmap
from downstream.run.feature_bags import is_of_slides

if TYPE_CHECKING:
    from downstream.kept.kept_model import Predicted
    from downstream.kept.lake_patients import LakePatients
    from downstream.kept.run_models import RunModel
    from downstream.report.finished_run import Run

Floats = NDArray[np.float64]
Row = dict[str, Any]


def patient_rows(
    run: "Run",
    models: Sequence["RunModel"],
    reader: "LakePatients",
    owner_of: Mapping[str, str],
    *,
    trained_on: Mapping[str, frozenset[str] | None],
    heatmaps: HeatmapFolder | None,
    arm: str,
) -> tuple[list[Row], list[str]]:
    """Return the row of each patient, and whom every model was trained on, with the reason.

    A patient is known by the id, and by the slides: the labels of the run may have named patients
    whom the lake does not know, or knows by another name.

    Args:
        run: the run of the models.
        models: all models of an arm.
        reader: bags of the patients.
        owner_of: patient of each slide of the run, as its labels had it.
        trained_on: patients that each student among the features was trained on.
        heatmaps: folder that gets the attention of every slide; None for none.
        arm: name of the arm, for the heatmaps.

    Raises:
        KeptModelError: Heatmaps of models that do not weigh tiles.
    """
    in_run = {patient for model in models for patient in (*model.trained_on, *model.split.test)}
    rows, lost = [], []
    with progress("predict", total=len(reader.slides_of), unit="patients") as bar:
        for patient, slides in reader.slides_of.items():
            names = {patient, *(owner_of[slide] for slide in slides if slide in owner_of)}
            fresh = [model for model in models if not names & model.trained_on]
            if not fresh:
                lost.append(f"{patient}: every model was trained on this patient")
                bar.advance(1)
                continue
            predicted = [model.apply(reader, [patient]) for model in fresh]
            is_seen = bool(names & in_run)
            rows.append(
                {
                    "patient_id": patient,
                    "slide_ids": list(slides),
                    "seen": is_seen,
                    "fold": _fold_text(fresh) if is_seen else None,
                    **_student_columns(patient, trained_on),
                    **_prediction_columns(run, fresh, predicted),
                }
            )
            if heatmaps is not None:
                for heatmap in slide_heatmaps(reader, patient, predicted, arm):
                    heatmaps.add(heatmap)
            bar.advance(1)
    return rows, lost


def _fold_text(models: Sequence["RunModel"]) -> str:
    """Return the repetitions and folds whose models predict a patient, as `0.3 1.4`."""
    keys = sorted({(model.split.repeat, model.split.fold) for model in models})
    return " ".join(f"{repeat}.{fold}" for repeat, fold in keys)


def _student_columns(
    patient: str, trained_on: Mapping[str, frozenset[str] | None]
) -> dict[str, bool | None]:
    """Return whether a student was trained on the patient; no column without a student."""
    if not trained_on:
        return {}
    patient_sets = [patients for patients in trained_on.values() if patients is not None]
    if any(patient in patients for patients in patient_sets):
        return {"student_trained": True}
    return {"student_trained": False if len(patient_sets) == len(trained_on) else None}


def slide_heatmaps(
    reader: "LakePatients", patient: str, predicted: Sequence["Predicted"], arm: str
) -> Iterator[SlideHeatmap]:
    """Yield the attention of each slide of a patient, the mean over models.

    Attention sums to 1 over the tiles of the patient in each model.

    Raises:
        KeptModelError: A model does not weigh tiles, or weighs all alike.
    """
    from featurestore import tile_parts

    weights_MN = [one.attention[0] for one in predicted if one.attention is not None]
    if len(weights_MN) < len(predicted) or is_of_slides(reader.features):
        msg = (
            f"no heatmaps of arm {arm!r}: its models do not weigh tiles; choose an arm that does "
            "by --arm, such as one of abmil, or leave --heatmaps out"
        )
        raise KeptModelError(msg)
    bag = reader.bag(patient)
    mpp_N = tile_parts(bag.tile_id)[1]
    tiles = pl.DataFrame(
        {
            "tile_id": bag.tile_id,
            "x": bag.x,
            "y": bag.y,
            "mpp": mpp_N,
            "attention": np.mean(weights_MN, axis=0).astype(np.float32),
            "slide": bag.slide,
        }
    )
    for number, slide_id in enumerate(reader.slides_of[patient]):
        rows = tiles.filter(pl.col("slide") == number).drop("slide")
        if not rows.is_empty():
            rows = rows.with_columns(slide_id=pl.lit(slide_id))
            yield SlideHeatmap(slide_id=slide_id, patient_id=patient, arm=arm, tiles=rows)


def _prediction_columns(
    run: "Run", models: Sequence["RunModel"], predicted: Sequence["Predicted"]
) -> Row:
    """Return the columns of one patient's prediction."""
    outcomes = [one.outcome[0] for one in predicted]
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
