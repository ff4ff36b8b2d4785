"""From finished cells to a result: pooled predictions, metrics with intervals, a run's files.

`runs/<run>/` holds `cells/<features>-<fold>.json` (and `.attention.parquet`),
`predictions.parquet`, `attention.parquet` (classification) and, last, `result.json`.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from downstream.cells import parquet_bytes
from downstream.metrics import auroc, bootstrap, concordance
from downstream.survival import fold_ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from downstream.metrics import Estimate
    from downstream.study import Cell, Study
    from featurestore import Lake

_SCHEMA: dict[str, dict[str, Any]] = {
    "mil": {
        "patient_id": pl.String,
        "fold": pl.Int32,
        "features": pl.String,
        "label": pl.String,
        "score": pl.Float64,
        "probabilities": pl.List(pl.Float64),
    },
    "survival": {
        "patient_id": pl.String,
        "fold": pl.Int32,
        "features": pl.String,
        "risk": pl.Float64,
        "high": pl.Boolean,
        "time": pl.Float64,
        "event": pl.Boolean,
    },
}


def is_finished(lake: Lake, cell: Cell) -> bool:
    """Whether a cell is stored whole."""
    return lake.exists(f"{cell.stem}.json")


def find_result(lake: Lake, run: str) -> dict[str, Any] | None:
    """The result of a run, or None while it is not finished."""
    path = f"runs/{run}/result.json"
    if not lake.exists(path):
        return None
    result: dict[str, Any] = json.loads(lake.read_bytes(path))
    return result


def collect(
    lake: Lake, study: Study, *, missing: Sequence[str], surplus: Sequence[str]
) -> dict[str, Any]:
    """Put the finished cells of a run together and store its result.

    Args:
        lake: The lake of the run.
        study: The run; all its cells are stored.
        missing: Labelled ids without a ready slide.
        surplus: Ready slides without a label.

    Returns:
        The content of `result.json`. `seconds` is the sum over cells of reading, training and
        predicting, not wall-clock time: it is the same for a run that was killed and went on.
    """
    cells = [json.loads(lake.read_bytes(f"{cell.stem}.json")) for cell in study.cells()]
    predictions = _predictions(study, [row for cell in cells for row in cell["rows"]])
    folder = f"runs/{study.run}"
    lake.write_bytes(f"{folder}/predictions.parquet", parquet_bytes(predictions))
    if study.kind == "mil":
        lake.write_bytes(f"{folder}/attention.parquet", parquet_bytes(_attention(lake, study)))
    result = {
        "kind": study.kind,
        "target": study.columns[-1],
        "metrics": {name: _metric(study, predictions, name) for name in study.features},
        "folds": study.folds,
        "patients": len(study.patients),
        "slides": sum(len(patient.slide_ids) for patient in study.patients),
        "lake_version": study.lake_version,
        "run": study.run,
        "seconds": sum(cell["seconds"] for cell in cells),
        "missing": list(missing),
        "surplus": list(surplus),
        "config": study.config,
    }
    # last: a folder with a result.json is a finished run
    lake.write_bytes(
        f"{folder}/result.json", json.dumps(result, indent=1, allow_nan=False).encode()
    )
    return result


def _predictions(study: Study, rows: list[dict[str, Any]]) -> pl.DataFrame:
    """All out-of-fold predictions; survival gets `rank`, the risk made comparable over folds."""
    frame = pl.DataFrame(rows, schema=_SCHEMA[study.kind]).sort("features", "patient_id")
    if study.kind == "mil":
        return frame
    ranked = []
    for name in sorted(study.features):
        part = frame.filter(pl.col("features") == name)
        ranks = fold_ranks(part["risk"].to_numpy(), part["fold"].to_numpy())
        ranked.append(part.with_columns(pl.Series("rank", ranks)))
    return pl.concat(ranked)


def _attention(lake: Lake, study: Study) -> pl.DataFrame:
    """Attention of all test tiles: each tile once per feature set, as each has one test fold."""
    paths = (f"{cell.stem}.attention.parquet" for cell in study.cells())
    return pl.concat([pl.read_parquet(io.BytesIO(lake.read_bytes(path))) for path in paths])


def _metric(study: Study, predictions: pl.DataFrame, features: str) -> dict[str, Any]:
    """The main metric of one feature set as JSON."""
    part = predictions.filter(pl.col("features") == features)
    name, assess = _ASSESS[study.kind]
    return {**asdict(assess(study, part)), "metric": name}


def _assess_mil(study: Study, part: pl.DataFrame) -> Estimate:
    """AUROC of the out-of-fold probabilities, pooled as they are: the folds are stratified."""
    label = np.array([study.classes.index(name) for name in part["label"]], dtype=np.int64)
    probabilities = np.array(part["probabilities"].to_list())
    binary = probabilities.shape[1] == 2
    return bootstrap(
        auroc, label, probabilities[:, 1] if binary else probabilities, seed=study.seed
    )


def _assess_survival(study: Study, part: pl.DataFrame) -> Estimate:
    """Harrell's C of the out-of-fold risks pooled by their rank within the fold."""
    columns = [part[name].to_numpy() for name in ("event", "time", "rank")]
    return bootstrap(concordance, *columns, seed=study.seed)


_ASSESS: dict[str, tuple[str, Callable[[Study, pl.DataFrame], Estimate]]] = {
    "mil": ("auroc", _assess_mil),
    "survival": ("concordance", _assess_survival),
}
