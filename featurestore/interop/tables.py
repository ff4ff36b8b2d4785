"""Label tables of other tools, as they are: CLAM, STAMP and Patho-Bench, and a lake's own form.

Ids stay strings: a patient "007" is not the number 7. Empty cells and the words that pandas takes
for a missing value are null, since all these tools read their tables with pandas.
"""

import io
import os
import re
from pathlib import Path, PurePosixPath

import polars as pl

from featurestore.interop.model import InteropError

NULLS = ["", "#N/A", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"]
IDS = {
    "slide_id": "slide_id",
    "patient_id": "patient_id",
    "case_id": "patient_id",
    "PATIENT": "patient_id",
    "FILENAME": "slide_id",
}
KNOWN = (
    "CLAM and Patho-Bench (case_id, slide_id, ...), STAMP's clini table (PATIENT, ...) and slide "
    "table (PATIENT, FILENAME), and slide_id and/or patient_id"
)
ENDINGS = (".csv", ".tsv", ".xlsx", ".parquet")
FOLD = re.compile(r"fold_(\d+)")


def read_table(path: str | os.PathLike[str]) -> pl.DataFrame:
    """A CSV, TSV, XLSX (first sheet) or Parquet file; pandas' unnamed index column is left out.

    Raises:
        InteropError: no such file, another ending, or it can't be read as what it is called.
    """
    file = Path(path)
    ending = file.suffix.lower()
    if ending not in ENDINGS:
        msg = f"{file} ends in '{ending}'; tables are read from {', '.join(ENDINGS)}"
        raise InteropError(msg)
    try:
        table = _parsed(file.read_bytes(), ending)
    except (OSError, pl.exceptions.PolarsError, ValueError) as error:
        first = str(error).partition("\n")[0]
        msg = f"{file} can't be read as {ending[1:]}: {first}"
        raise InteropError(msg) from error
    unnamed = [n for n in table.columns if not n or n.startswith(("Unnamed:", "__UNNAMED__"))]
    return table.drop(unnamed)


def _parsed(content: bytes, ending: str) -> pl.DataFrame:
    if ending == ".parquet":
        return pl.read_parquet(io.BytesIO(content))
    if ending == ".xlsx":
        table = _first_sheet(content)
    else:
        separator = "\t" if ending == ".tsv" else ","
        table = pl.read_csv(
            io.BytesIO(content),
            separator=separator,
            null_values=NULLS,
            infer_schema_length=None,
            schema_overrides=dict.fromkeys(IDS, pl.String),
        )
    ids = [name for name in IDS if name in table.columns]
    return table.with_columns(pl.col(ids).cast(pl.String).replace(dict.fromkeys(NULLS)))


def _first_sheet(content: bytes) -> pl.DataFrame:
    import fastexcel

    try:
        return pl.read_excel(io.BytesIO(content), infer_schema_length=None)
    except fastexcel.FastExcelError as error:
        raise ValueError(str(error)) from error


def read_labels(
    path: str | os.PathLike[str], *, slides: str | os.PathLike[str] | None = None
) -> pl.DataFrame:
    """Labels of slides or patients.

    Args:
        path: CLAM's CSV, Patho-Bench's TSV, STAMP's clini table, or a table with slide_id and/or
            patient_id.
        slides: STAMP's slide table, which says what slides a patient has.

    Returns:
        `slide_id` and `patient_id`, those of the two that the tables have, then the other columns
        as they are. Folds of Patho-Bench are left out; `read_splits` reads them.

    Raises:
        InteropError: a file that can't be read, or of no known form.
    """
    labels = _with_ids(read_table(path), path)
    if slides is not None:
        files = _with_ids(read_table(slides), slides)
        if set(files.columns) < {"slide_id", "patient_id"}:
            msg = f"{slides} has columns {files.columns}; a slide table has PATIENT and FILENAME"
            raise InteropError(msg)
        labels = labels.drop("slide_id", strict=False)
        labels = files.select("slide_id", "patient_id").join(labels, on="patient_id", how="inner")
    first = [name for name in ("slide_id", "patient_id") if name in labels.columns]
    rest = [name for name in labels.columns if name not in first and not FOLD.fullmatch(name)]
    return labels.select(*first, *rest)


def _with_ids(table: pl.DataFrame, path: str | os.PathLike[str]) -> pl.DataFrame:
    """The table with the id columns under our names, whatever tool it is of."""
    names = {theirs: ours for theirs, ours in IDS.items() if theirs in table.columns}
    if len(set(names.values())) < len(names):
        msg = f"{os.fspath(path)} has the columns {sorted(names)}, which mean the same; keep one"
        raise InteropError(msg)
    if not names:
        msg = f"{os.fspath(path)} has columns {table.columns}; known forms are: {KNOWN}"
        raise InteropError(msg)
    if "FILENAME" in names:
        stems = [name and PurePosixPath(name).stem for name in table["FILENAME"]]
        table = table.with_columns(pl.Series("FILENAME", stems, pl.String))
    return table.rename(names)
