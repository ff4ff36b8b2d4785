"""The task of a worker: train one arm on one fold, predict the patients, store the cell.

Runs in any process that can open the lake; Ray only brings the cell here.
"""

import io
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from downstream.cells.cell_models import fit_member
from downstream.cells.cell_patients import CellPatients
from downstream.cells.held_lake import held_lake
from downstream.cells.prediction_rows import attention_table, rows_of
from downstream.cells.trials import settings_of
from downstream.run.feature_bags import is_of_slides

if TYPE_CHECKING:
    import polars as pl

    from downstream.run.study import Cell
    from featurestore import Lake


def run_cell(cell: "Cell") -> float:
    """Open the lake, fit and store a cell.

    Returns:
        The seconds of the cell, reading included.
    """
    return fit_and_store(held_lake(cell.study.lake_uri, cell.study.lake_version), cell)


def fit_and_store(lake: "Lake", cell: "Cell") -> float:
    """Fit a cell and store it in the run's folder.

    A model is trained on each inner split; test predictions are the mean over these models, and a
    validation patient is predicted by the model that was not trained on it.

    Returns:
        The seconds of the cell, reading included.
    """
    from featurestore.storage import json_bytes, sealed

    start = time.perf_counter()
    patients = CellPatients(lake, cell, settings=settings_of(lake, cell))
    members = [fit_member(patients, split) for split in cell.splits]
    if cell.softens:
        patients.soften(members, cell.study.settings.soft_labels)
        members = [fit_member(patients, split) for split in cell.splits]
    rows = rows_of(cell, patients, members)
    seconds = time.perf_counter() - start
    first = cell.repeat == 0 and cell.seed == 0
    if first and members[0].attention is not None and not is_of_slides(cell.arm.features):
        table = attention_table(cell, patients, members)
        lake.write_bytes(cell.attention_path, parquet_bytes(table))
    for member in members:
        if member.kept is not None:
            lake.write_bytes(cell.model_path(member.split.inner), member.kept.to_bytes())
    # the JSON goes last: it is the mark that the cell is finished
    content: dict[str, Any] = {
        **cell.key,
        "seconds": seconds,
        "rows": rows,
        "settings": asdict(patients.settings),
        "members": [member.training_record for member in members],
    }
    lake.write_bytes(cell.path, json_bytes(sealed(content, {})))
    return seconds


def parquet_bytes(frame: "pl.DataFrame") -> bytes:
    """Return a table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()
