"""What a worker does: fit one feature set on one fold, predict the fold's patients, store the cell.

Runs in any process that can open the lake; Ray only brings the cell here.
"""

from __future__ import annotations

import io
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import polars as pl

from downstream.bags import PatientBags, slide_tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from downstream.bags import Tiles
    from downstream.settings import AbmilSettings, CoxSettings
    from downstream.study import Cell, Patient
    from featurestore import Lake

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a fit leaves behind.

    Attributes:
        rows: One dict per test patient, JSON.
        attention: Attention of the test patients' tiles, or None for a model without.
    """

    rows: list[Row]
    attention: pl.DataFrame | None


def run_cell(cell: Cell) -> float:
    """Open the lake, fit and store a cell.

    Returns:
        Seconds it took, reading included.
    """
    from featurestore import open_lake

    return fit_and_store(open_lake(cell.study.lake_uri, version=cell.study.lake_version), cell)


def fit_and_store(lake: Lake, cell: Cell) -> float:
    """Fit a cell and store it in the run's folder.

    Returns:
        Seconds it took, reading included.
    """
    start = time.perf_counter()
    fitted = FITS[cell.study.kind](lake, cell)
    seconds = time.perf_counter() - start
    # the JSON goes last: it is the mark that the cell is finished
    if fitted.attention is not None:
        lake.write_bytes(f"{cell.stem}.attention.parquet", parquet_bytes(fitted.attention))
    content = {
        "features": cell.features,
        "fold": cell.fold,
        "seconds": seconds,
        "rows": fitted.rows,
    }
    lake.write_bytes(f"{cell.stem}.json", json.dumps(content, allow_nan=False).encode())
    return seconds


def parquet_bytes(frame: pl.DataFrame) -> bytes:
    """A table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def fit_mil(lake: Lake, cell: Cell) -> Fitted:
    """Train ABMIL on the other folds and classify this one."""
    from downstream.mil import predict, train_abmil

    study = cell.study
    bags = PatientBags(lake, _slides(cell.train), cell.features, mpp=study.mpp)
    labels = np.array([patient.outcome[0] for patient in cell.train], dtype=np.int64)
    model = train_abmil(
        bags,
        labels,
        classes=len(study.classes),
        settings=cast("AbmilSettings", study.settings),
        seed=_seed(study.seed, cell.fold),
    )
    rows, attention = [], []
    for patient in cell.test:
        slides = [
            slide_tiles(lake, slide, cell.features, mpp=study.mpp) for slide in patient.slide_ids
        ]
        probabilities, weights = predict(model, np.concatenate([s.features for s in slides]))
        rows.append(_who(cell, patient) | _classified(patient, study.classes, probabilities))
        attention.append(_attention_table(cell, patient, slides, weights))
    return Fitted(rows=rows, attention=pl.concat(attention))


def fit_survival(lake: Lake, cell: Cell) -> Fitted:
    """Fit the pooled Cox model on the other folds and give this one its risks (HIGHER = WORSE)."""
    from downstream.survival import fit_cox, is_high_risk

    train, test = (_pooled(lake, cell, patients) for patients in (cell.train, cell.test))
    times = np.array([patient.outcome[0] for patient in cell.train])
    events = np.array([patient.outcome[1] for patient in cell.train]) == 1
    model = fit_cox(train, times, events, settings=cast("CoxSettings", cell.study.settings))
    risks = model.risk(test)
    highs = is_high_risk(risks, model.risk(train))
    rows = [
        {
            **_who(cell, patient),
            "risk": float(risk),
            "high": bool(high),
            "time": patient.outcome[0],
            "event": patient.outcome[1] == 1,
        }
        for patient, risk, high in zip(cell.test, risks, highs, strict=True)
    ]
    return Fitted(rows=rows, attention=None)


FITS: dict[str, Callable[[Lake, Cell], Fitted]] = {"mil": fit_mil, "survival": fit_survival}


def _slides(patients: Sequence[Patient]) -> list[tuple[str, ...]]:
    return [patient.slide_ids for patient in patients]


def _who(cell: Cell, patient: Patient) -> Row:
    """The columns that every prediction has."""
    return {"patient_id": patient.patient_id, "fold": cell.fold, "features": cell.features}


def _classified(
    patient: Patient, classes: Sequence[str], probabilities: NDArray[np.float64]
) -> Row:
    """Label and probabilities; `score` is the positive class's, null with more than two."""
    binary = len(classes) == 2
    return {
        "label": classes[int(patient.outcome[0])],
        "score": float(probabilities[1]) if binary else None,
        "probabilities": probabilities.tolist(),
    }


def _attention_table(
    cell: Cell, patient: Patient, slides: Sequence[Tiles], weights: NDArray[np.float32]
) -> pl.DataFrame:
    """Attention of a patient's tiles, slide by slide in the order of the bag."""
    ids = np.repeat(np.array(patient.slide_ids), [len(tiles.tile_id) for tiles in slides])
    return pl.DataFrame(
        {
            "slide_id": ids.tolist(),
            "tile_id": np.concatenate([tiles.tile_id for tiles in slides]),
            "x": np.concatenate([tiles.x for tiles in slides]),
            "y": np.concatenate([tiles.y for tiles in slides]),
            "features": [cell.features] * len(weights),
            "attention": weights,
        }
    )


def _pooled(lake: Lake, cell: Cell, patients: Sequence[Patient]) -> NDArray[np.float64]:
    """Pooled features [P, D] of some patients, one slide in memory at a time."""
    from downstream.survival import pool

    def features_of(slide_id: str) -> NDArray[np.float16]:
        return slide_tiles(lake, slide_id, cell.features, mpp=cell.study.mpp).features

    return np.stack([pool([features_of(slide) for slide in p.slide_ids]) for p in patients])


def _seed(seed: int, fold: int) -> int:
    """A seed per fold; feature sets share it, so that they differ in features only."""
    return int(np.random.SeedSequence([seed, fold]).generate_state(1)[0])
