"""The result of a run from its finished cells: predictions, measures with intervals, files.

`runs/<run>/` holds `cells/*.json`, `attention/*.parquet`, `splits.parquet`, `predictions.parquet`,
then `result.json`, which marks a finished run, and a page made of these, `report.html`.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import polars as pl

from downstream.measures.arm_comparisons import compare_arms
from downstream.measures.arm_scores import main_name, score, study_times
from downstream.measures.conformal import guarantees_of
from downstream.measures.coverage import coverage_at
from downstream.protocols.protocol_measures import mean_over_parts, protocol_measures
from downstream.robustness.study_sites import site_probes
from downstream.run.cells import parquet_bytes
from downstream.run.feature_bags import column_identity, teachers_of
from downstream.run.outcome_counts import outcome_counts, outcome_notes
from downstream.splits.split_tables import to_table
from downstream.survival.group_incidence import incidence_of_groups
from downstream.survival.risks import fold_ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    """Return the result of a run, or None while it is not finished.

    Raises:
        DamageError: The file differs from what was written.
    """
    from featurestore.storage import read_sealed

    path = f"runs/{run}/result.json"
    return read_sealed(lake.store, path) if lake.exists(path) else None


def write_result(
    lake: "Lake",
    run: str,
    result: dict[str, Any],
    files: dict[str, bytes],
    *,
    written: "Sequence[str]" = (),
) -> dict[str, Any]:
    """Write the files of a run, then `result.json` with their checksums; return its content.

    Args:
        lake: the lake of the run.
        run: name of the run.
        result: content of `result.json`, without checksums.
        files: the bytes of the files to write, by their path in the run's folder.
        written: paths in the run's folder of files that exist already; each is read on its own.

    Returns:
        The written content: the result with `checksums`, and `card_crc32` over all of it.
    """
    from featurestore.storage import CHECKSUMS, checksum_of, json_bytes, resealed

    for name, content in files.items():
        lake.write_bytes(f"runs/{run}/{name}", content)
    checksums = {name: checksum_of(content) for name, content in files.items()}
    checksums |= {name: checksum_of(lake.read_bytes(f"runs/{run}/{name}")) for name in written}
    whole = resealed({**result, CHECKSUMS: checksums})
    lake.write_bytes(f"runs/{run}/result.json", json_bytes(whole))
    return whole


def collect(lake: "Lake", study: "Study", cohort: "Cohort") -> dict[str, Any]:
    """Combine the finished cells of a run; store and return its result.

    Args:
        lake: the lake of the run.
        study: the run; all its cells are stored.
        cohort: cohort of the run, for its missing and surplus ids and its notes.

    Returns:
        The content of `result.json`. `seconds` is the sum over cells of reading, training and
        predicting, not wall-clock time: it is the same for a run that was killed and went on.
    """
    from featurestore.storage import read_sealed

    cells = [read_sealed(lake.store, cell.path) for cell in study.cells()]
    predictions = predictions_table(study, [row for cell in cells for row in cell["rows"]])
    tested = predictions.filter(pl.col("part") == "test")
    facts, site_notes = site_probes(lake, study, cohort)
    study_result = {
        "kind": study.kind,
        "task": study.task,
        "target": study.columns[-1],
        "arms": {arm.name: {"features": arm.features, "model": arm.model} for arm in study.arms},
        "metrics": {
            arm.name: _arm_metric(study, tested.filter(pl.col("arm") == arm.name))
            for arm in study.arms
        },
        **_incidence(study, tested),
        "coverage": _coverage(study, predictions),
        "guarantees": _guarantees(study, predictions, cohort),
        "comparisons": compare_arms(study, tested),
        "folds": len({fold for _, fold in study.folds}),
        "repeats": len({repeat for repeat, _ in study.folds}),
        "inner": len(study.inner(*study.folds[0])),
        "seeds": study.seeds,
        "patients": len(study.patients),
        "slides": sum(len(patient.slide_ids) for patient in study.patients),
        "outcomes": outcome_counts(study),
        **facts,
        **_protocol(study, tested, cohort),
        "lake_version": study.lake_version,
        "run": study.run,
        "seconds": sum(cell["seconds"] for cell in cells),
        "missing": cohort.missing,
        "surplus": cohort.surplus,
        "notes": [
            *cohort.notes,
            *site_notes,
            *outcome_notes(study, is_external=bool(cohort.external)),
        ],
        "curve_times": _curve_times(study),
        "columns": _columns(lake, study),
        "config": study.config,
    }
    files = {
        "splits.parquet": parquet_bytes(to_table(study.splits)),
        "predictions.parquet": parquet_bytes(predictions),
        "patients.parquet": parquet_bytes(_slides_of_patients(study)),
    }
    return write_result(lake, study.run, study_result, files, written=_written(lake, study))


def _written(lake: "Lake", study: "Study") -> list[str]:
    """Return the paths in the run's folder of the attention and the models of its cells."""
    paths = [cell.attention_path for cell in study.cells()]
    paths += [cell.model_path(split.inner) for cell in study.cells() for split in cell.splits]
    return [path.removeprefix(f"runs/{study.run}/") for path in paths if lake.exists(path)]


def predictions_table(study: "Study", rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Return the predictions of all cells; survival also has `rank`, comparable over folds."""
    cause = {"cause": pl.Int32} if study.causes else {}
    frame = pl.DataFrame(rows, schema={**_KEYS, **_SCHEMA[study.task], **cause})
    frame = frame.sort("arm", "part", "patient_id", "repeat", "seed", "fold")
    return _with_ranks(frame) if study.task == "survival" else frame


def _with_ranks(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the predictions with the rank of each risk within its cell."""
    keys = ["arm", "part", "repeat", "fold", "seed"]
    numbers = frame.select(pl.struct(keys).rank("dense").cast(pl.Int64).alias("cell"))["cell"]
    ranks = fold_ranks(frame["risk"].to_numpy(), numbers.to_numpy())
    return frame.with_columns(pl.Series("rank", ranks))


def _arm_metric(study: "Study", part: pl.DataFrame) -> dict[str, Any]:
    """Return all measures of one arm as JSON, the main measure on top."""
    scored_by_name = {scored.measure: scored for scored in score(study, part)}
    measures = {
        name: {
            "higher_is_better": scored.higher_is_better,
            "folds": mean_over_parts(scored.parts),
            **(asdict(scored.interval) if scored.interval else {"undefined": scored.why}),
        }
        for name, scored in scored_by_name.items()
    }
    main = main_name(study)
    if scored_by_name[main].interval is None:
        return {"metric": main, "estimate": None, "low": None, "high": None, "measures": measures}
    return {"metric": main, **measures[main], "measures": measures}


def _protocol(study: "Study", tested: pl.DataFrame, cohort: "Cohort") -> dict[str, Any]:
    """Return the facts of the run's protocol with the tool's measures of each arm."""
    if not study.protocol:
        return {}
    measures = {
        arm.name: protocol_measures(
            study.protocol,
            study.task,
            list(study.classes),
            tested.filter(pl.col("arm") == arm.name),
        )
        for arm in study.arms
    }
    return {"protocol": {**cohort.facts["protocol"], "measures": measures}}


def _incidence(study: "Study", tested: pl.DataFrame) -> dict[str, Any]:
    """Return the cumulative incidence of each cause in the risk groups of each arm, as JSON.

    Empty for events of one kind.
    """
    if not study.causes:
        return {}
    return {
        "incidence": {
            arm.name: incidence_of_groups(tested.filter(pl.col("arm") == arm.name), study.causes)
            for arm in study.arms
        }
    }


def _coverage(study: "Study", predictions: pl.DataFrame) -> dict[str, Any]:
    """Return the coverage of each arm of a run of classes, see `coverage_at`."""
    if study.task not in {"binary", "multiclass"}:
        return {}
    coverage_of_arm = {}
    for arm in study.arms:
        rows = predictions.filter(pl.col("arm") == arm.name)
        coverage_of_arm[arm.name] = coverage_at(study, rows, target=study.accuracy)
    return {name: coverage for name, coverage in coverage_of_arm.items() if coverage is not None}


def _guarantees(study: "Study", predictions: pl.DataFrame, cohort: "Cohort") -> dict[str, Any]:
    """Return the conformal sets and the deferral of each arm of a run of classes."""
    if study.task not in {"binary", "multiclass"}:
        return {}
    of_arm = {
        arm.name: guarantees_of(
            study,
            predictions.filter(pl.col("arm") == arm.name),
            level=study.guarantee,
            site_of=cohort.site_of,
        )
        for arm in study.arms
    }
    return {name: promise for name, promise in of_arm.items() if promise is not None}


def _slides_of_patients(study: "Study") -> pl.DataFrame:
    """Return the slides of each patient, by which `predict` knows whom a model was trained on."""
    rows = [
        {"patient_id": patient.patient_id, "slide_ids": list(patient.slide_ids)}
        for patient in study.patients
    ]
    return pl.DataFrame(rows, schema={"patient_id": pl.String, "slide_ids": pl.List(pl.String)})


def _columns(lake: "Lake", study: "Study") -> dict[str, Any]:
    """Return the identity of each column that was read, by `TEACHER@MPP`, for `predict`."""
    teachers = {name for features in study.features for name in teachers_of(features)}
    return {
        f"{name}@{mpp}": column_identity(lake, name, mpp=mpp)
        for name in sorted(teachers)
        for mpp in study.mpps
    }


def _curve_times(study: "Study") -> list[float]:
    """Return the times of a run's survival curves; empty for other tasks."""
    if study.task != "survival":
        return []
    return [float(time) for time in study_times(study)]
