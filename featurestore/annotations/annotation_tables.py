"""Users' files as tables for annotations and queries, and annotations as tables of labels."""

import io
import os
from dataclasses import dataclass
from pathlib import PurePosixPath

import polars as pl

from featurestore.lake import Lake
from featurestore.tables.annotation import AnnotationError
from featurestore.usertables import HeldTable, UserTable, id_column, tables_raise
from featurestore.usertables.read_table import read_table

LABELS = "lake:"


@dataclass(frozen=True, kw_only=True)
class AnnotationFile:
    """A user's file for an annotation: its table, its name, and notes from reading it."""

    frame: pl.DataFrame
    source: str
    notes: tuple[str, ...]


def read_annotation(path: str | os.PathLike[str], *, distinct_ids: bool = False) -> AnnotationFile:
    """Read a file with ids as text, places as numbers, and all else as what it looks like.

    Args:
        path: CSV, TSV, XLSX or Parquet, local or at a URL.
        distinct_ids: whether ids that differ by case, blanks or Unicode form only are different.

    Raises:
        AnnotationError: the file or a cell of it can't be read; the cell is named.
    """
    with tables_raise(AnnotationError):
        table = read_table(path)
        keys = _keys(table, distinct=distinct_ids)
        key_names = {series.name for series in keys.values()}
        rest = [table.values(column) for column in table.columns if column not in key_names]
    columns = [series.alias(key) for key, series in keys.items()]
    name = PurePosixPath(os.fspath(path)).name
    return AnnotationFile(frame=pl.DataFrame([*columns, *rest]), source=name, notes=table.notes)


def _keys(table: UserTable, *, distinct: bool) -> dict[str, pl.Series]:
    """Return the columns that name tiles, slides and patients, under the lake's names."""
    keys: dict[str, pl.Series] = {}
    for key in ("slide_id", "patient_id"):
        if (column := id_column(table, key)) is not None:
            keys[key] = table.ids(column, distinct=distinct)
    if table.has("tile_id"):
        keys["tile_id"] = table.integers("tile_id")
    if {"slide_id"} <= set(keys) and table.has("x") and table.has("y"):
        keys |= {key: table.numbers(key) for key in ("x", "y", "mpp") if table.has(key)}
    return keys


def query_frame(path: str | os.PathLike[str]) -> pl.DataFrame:
    """Read a file for a question in SQL: ids as text, all else as what it looks like.

    Raises:
        AnnotationError: the file can't be read.
    """
    with tables_raise(AnnotationError):
        table = read_table(path)
        frame = table.frame()
        ids = [c for key in ("slide_id", "patient_id") if (c := id_column(table, key)) is not None]
        return frame.with_columns(table.texts(column) for column in ids)


def labels_of(lake: Lake, labels: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return the labels unchanged, or the table of the annotation that `lake:NAME` names.

    Raises:
        LakeError: the lake has no such annotation.
    """
    text = os.fspath(labels)
    if not text.startswith(LABELS):
        return labels
    frame = lake.annotation(text.removeprefix(LABELS)).collect()
    file = io.BytesIO()
    frame.write_parquet(file)
    return HeldTable(name=f"{text}.parquet", content=file.getvalue())
