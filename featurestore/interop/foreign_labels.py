"""Label tables of other tools, as they are: CLAM, STAMP and Patho-Bench, and a lake's own form."""

import os
import re
from pathlib import PurePosixPath

import polars as pl

from featurestore.interop.foreign_slide import InteropError
from featurestore.usertables import (
    ID_NAMES,
    Id,
    UserTable,
    id_column,
    read_table,
    tables_raise,
)

KNOWN = (
    "CLAM and Patho-Bench (case_id, slide_id, ...), STAMP's clini table (PATIENT, ...) and slide "
    "table (PATIENT, FILENAME), and slide_id and/or patient_id"
)
FOLD = re.compile(r"fold_(\d+)")
_ORDER: tuple[Id, Id] = ("slide_id", "patient_id")


def read_labels(
    path: str | os.PathLike[str], *, slides: str | os.PathLike[str] | None = None
) -> pl.DataFrame:
    """Return labels of slides or patients.

    Args:
        path: CLAM's CSV, Patho-Bench's TSV, STAMP's clini table, or a table with slide_id and/or
            patient_id; any form that `featurestore.usertables` reads.
        slides: STAMP's slide table, which lists the slides of each patient.

    Returns:
        `slide_id` and `patient_id`, as far as the tables have them, then the other columns
        as what they look like. Folds of Patho-Bench are left out; `read_splits` reads them.

    Raises:
        InteropError: a file that can't be read, or of no known form.
    """
    with tables_raise(InteropError):
        labels = _with_ids(read_table(path))
        files = None if slides is None else _with_ids(read_table(slides))
    if files is not None:
        if set(files.columns) < set(ID_NAMES):
            msg = f"{slides} has columns {files.columns}; a slide table has PATIENT and FILENAME"
            raise InteropError(msg)
        labels = labels.drop("slide_id", strict=False)
        labels = files.select("slide_id", "patient_id").join(labels, on="patient_id", how="inner")
    rest = [n for n in labels.columns if n not in ID_NAMES and not FOLD.fullmatch(n)]
    return labels.select(*[name for name in _ORDER if name in labels.columns], *rest)


def _with_ids(table: UserTable) -> pl.DataFrame:
    """Return the table with the id columns under our names, whatever tool it is of."""
    columns = {key: id_column(table, key) for key in _ORDER}
    ids = {key: column for key, column in columns.items() if column is not None}
    if not ids:
        msg = f"{table.name} has columns {[*table.columns]}; known forms are: {KNOWN}"
        raise InteropError(msg)
    series = {key: table.ids(column).alias(key) for key, column in ids.items()}
    if ids.get("slide_id", "").lower() == "filename":
        stems = [name and PurePosixPath(name).stem for name in series["slide_id"]]
        series["slide_id"] = pl.Series("slide_id", stems, pl.String)
    rest = table.frame().drop(*ids.values(), *ids, strict=False)
    return pl.DataFrame([*series.values(), *rest.iter_columns()])
