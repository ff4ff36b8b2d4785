"""From finished cells to a result: all predictions, measures with intervals, a run's files.

`runs/<run>/` holds `cells/*.json`, `attention/*.parquet`, `splits.parquet`, `predictions.parquet`,
then `result.json`, which marks a finished run, and a page made of these, `report.html`.
"""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import polars as pl

from downstream.measures.arm_scores import MAIN, compare_arms, score, study_times
from downstream.measures.coverage import coverage_at
from downstream.run.cells import parquet_bytes
from downstream.splits.split_tables import to_table
from downstream.survival.risks import fold_ranks

if TYPE_CHECKING:
    from downstream.cohorts.cohort import Cohort
    from downstream.run.study import Study
    from featurestore import Lake

_KEYS: dict[str, Any] = {
    "patient_id": pl.String,
    "part": pl.String,
    "repeat": pl.Int32,
    "fold": pl.Int32,
    "seed": pl.Int32,
    "arm": pl.String,
    "features": pl.String,
    "model": pl.String,
}
_CLASSES: dict[str, Any] = {
    "label": pl.String,
    "probabilities": pl.List(pl.Float64),
    "score": pl.Float64,
    "threshold": pl.Float64,
}
_SCHEMA: dict[str, dict[str, Any]] = {
    "binary": _CLASSES,
    "multiclass": _CLASSES,
    "multilabel": {"labels": pl.List(pl.Int8), "probabilities": pl.List(pl.Float64)},
    "regression": {"value": pl.Float64, "found": pl.Float64},
    "survival": {
        "time": pl.Float64,
        "event": pl.Boolean,
        "risk": pl.Float64,
        "high": pl.Boolean,
        "curve": pl.List(pl.Float64),
    },
}


def find_result(lake: "Lake", run: str) -> dict[str, Any] | None:
    """Return the result of a run, or None while it is not finished."""
    path = f"runs/{run}/result.json"
    if not lake.exists(path):
        return None
    result: dict[str, Any] = json.loads(lake.read_bytes(path))
    return result


def collect(lake: "Lake", study: "Study", cohort: "Cohort") -> dict[str, Any]:
    """Put the finished cells of a run together and store its result.

    Args:
        lake: The lake of the run.
        study: The run; all its cells are stored.
        cohort: Where its patients come from: for who is left out, and what was recognised.

    Returns:
        The content of `result.json`. `seconds` is the sum over cells of reading, training and
        predicting, not wall-clock time: it is the same for a run that was killed and went on.
    """
    cells = [json.loads(lake.read_bytes(cell.path)) for cell in study.cells()]
    predictions = _predictions(study, [row for cell in cells for row in cell["rows"]])
    folder = f"runs/{study.run}"
    lake.write_bytes(f"{folder}/splits.parquet", parquet_bytes(to_table(study.splits)))
    lake.write_bytes(f"{folder}/predictions.parquet", parquet_bytes(predictions))
    tested = predictions.filter(pl.col("part") == "test")
    result = {
        "kind": study.kind,
        "task": study.task,
        "target": study.columns[-1],
        "arms": {arm.name: {"features": arm.features, "model": arm.model} for arm in study.arms},
        "metrics": {
            arm.name: _metric(study, tested.filter(pl.col("arm") == arm.name)) for arm in study.arms
        },
        "coverage": _coverage(study, predictions),
        "comparisons": compare_arms(study, tested),
        "folds": len({fold for _, fold in study.folds}),
        "repeats": len({repeat for repeat, _ in study.folds}),
        "inner": len(study.inner(*study.folds[0])),
        "seeds": study.seeds,
        "patients": len(study.patients),
        "slides": sum(len(patient.slide_ids) for patient in study.patients),
        "lake_version": study.lake_version,
        "run": study.run,
        "seconds": sum(cell["seconds"] for cell in cells),
        "missing": cohort.missing,
        "surplus": cohort.surplus,
        "notes": list(cohort.notes),
        "curve_times": _curve_times(study),
        "config": study.config,
    }
    # last: a folder with a result.json is a finished run
    lake.write_bytes(
        f"{folder}/result.json", json.dumps(result, indent=1, allow_nan=False).encode()
    )
    return result


def _predictions(study: "Study", rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Return the predictions of all cells; survival gets `rank`, a risk comparable over folds."""
    frame = pl.DataFrame(rows, schema={**_KEYS, **_SCHEMA[study.task]})
    frame = frame.sort("arm", "part", "patient_id", "repeat", "seed", "fold")
    return _ranked(frame) if study.task == "survival" else frame


def _ranked(frame: pl.DataFrame) -> pl.DataFrame:
    """Add the rank of a risk within its cell, since a risk has no zero point."""
    keys = ["arm", "part", "repeat", "fold", "seed"]
    numbers = frame.select(pl.struct(keys).rank("dense").cast(pl.Int64).alias("cell"))["cell"]
    ranks = fold_ranks(frame["risk"].to_numpy(), numbers.to_numpy())
    return frame.with_columns(pl.Series("rank", ranks))


def _metric(study: "Study", part: pl.DataFrame) -> dict[str, Any]:
    """Return all measures of one arm as JSON, the main one on top."""
    scored_by_name = {scored.measure: scored for scored in score(study, part)}
    measures = {
        name: {
            "higher_is_better": scored.higher_is_better,
            **(asdict(scored.interval) if scored.interval else {"undefined": scored.why}),
        }
        for name, scored in scored_by_name.items()
    }
    main = MAIN[study.task]
    if scored_by_name[main].interval is None:
        return {"metric": main, "estimate": None, "low": None, "high": None, "measures": measures}
    return {"metric": main, **measures[main], "measures": measures}


def _coverage(study: "Study", predictions: pl.DataFrame) -> dict[str, Any]:
    """Return the coverage of each arm of a run of classes, see `coverage_at`."""
    if study.task not in {"binary", "multiclass"}:
        return {}
    coverage_of_arm = {}
    for arm in study.arms:
        rows = predictions.filter(pl.col("arm") == arm.name)
        coverage_of_arm[arm.name] = coverage_at(study, rows, target=study.accuracy)
    return {name: value for name, value in coverage_of_arm.items() if value is not None}


def _curve_times(study: "Study") -> list[float]:
    if study.task != "survival":
        return []
    return [float(time) for time in study_times(study)]
