"""The models that a finished run keeps, and whom each of them was trained on."""

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from downstream.kept.kept_model import Apply, KeptModel, KeptModelError, restored
from downstream.measures.abstention import ClassPredictions, choose_threshold
from downstream.run.study import safe_name
from downstream.splits.split_tables import from_table

if TYPE_CHECKING:
    from downstream.report.finished_run import Run
    from downstream.splits.split import Split
    from featurestore import Lake


@dataclass(frozen=True, kw_only=True)
class RunModel:
    """A model of a run.

    Attributes:
        apply: the fitted model, a function of a reader and patients.
        split: the split that it was trained on.
        threshold: score from which on class 1 is predicted, of two classes; else None.
        answers_from: confidence from which on a class is told at the run's target accuracy; None
            where there was nobody to choose it on.
    """

    apply: Apply
    split: "Split"
    threshold: float | None
    answers_from: float | None

    @property
    def trained_on(self) -> frozenset[str]:
        """Return the patients that the model or its choices have seen."""
        return frozenset((*self.split.train, *self.split.validation))


def models_of_run(lake: "Lake", run: "Run", arm: str) -> list[RunModel]:
    """Return all models of one arm of a finished run.

    Args:
        lake: the lake that holds the run.
        run: the run.
        arm: name of the arm.

    Raises:
        KeptModelError: The run keeps no models of this arm.
        DamageError: A file is not what was written.
    """
    from featurestore.storage import read_named

    splits = from_table(_table(lake, run, "splits"))
    rows = _table(lake, run, "predictions").filter(pl.col("arm") == arm)
    run_models = []
    for seed in range(run.result["seeds"]):
        for split in splits:
            stem = f"{safe_name(arm)}-{split.repeat}-{split.fold}-{seed}-{split.inner}"
            path = f"runs/{run.name}/models/{stem}.safetensors"
            if not lake.exists(path):
                continue
            cell = rows.filter(
                (pl.col("repeat") == split.repeat)
                & (pl.col("fold") == split.fold)
                & (pl.col("seed") == seed)
            )
            run_models.append(
                RunModel(
                    apply=restored(KeptModel.from_bytes(read_named(lake.store, path, run.result))),
                    split=split,
                    threshold=_threshold(cell),
                    answers_from=_answers_from(run, cell),
                )
            )
    if not run_models:
        model = run.result["arms"][arm]["model"]
        msg = (
            f"run {run.name} keeps no models of arm {arm!r} ({model}): runs of earlier versions "
            "kept none, and forest and boosting cannot be kept without pickle; run the study "
            "again, or take another model"
        )
        raise KeptModelError(msg)
    return run_models


def owners_of_slides(lake: "Lake", run: "Run") -> dict[str, str]:
    """Return the patient of each slide of a run, as its labels had it."""
    rows = _table(lake, run, "patients").explode("slide_ids")
    return dict(rows.select("slide_ids", "patient_id").iter_rows())


def _table(lake: "Lake", run: "Run", name: str) -> pl.DataFrame:
    """Return a table of the run, compared with its checksum."""
    from featurestore.storage import read_named

    path = f"runs/{run.name}/{name}.parquet"
    return pl.read_parquet(io.BytesIO(read_named(lake.store, path, run.result)))


def _threshold(cell: pl.DataFrame) -> float | None:
    """Return the threshold of a cell of two classes."""
    if "threshold" not in cell.columns or cell.is_empty():
        return None
    threshold = cell["threshold"][0]
    return None if threshold is None else float(threshold)


def _answers_from(run: "Run", cell: pl.DataFrame) -> float | None:
    """Return the confidence from which on a cell answers at the run's target accuracy."""
    if run.task not in {"binary", "multiclass"}:
        return None
    validation = cell.filter(pl.col("part") == "validation")
    if validation.is_empty():
        return None
    label = [run.classes.index(name) for name in validation["label"]]
    predictions = ClassPredictions(
        patients=tuple(validation["patient_id"]),
        probabilities=np.array(validation["probabilities"].to_list()),
        labels=np.array(label, dtype=np.int64),
        part="validation",
    )
    return choose_threshold(predictions, target=run.result["config"]["accuracy"]).value
