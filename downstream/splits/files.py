"""Splits from a file or folder that a user has, recognised by what is in it.

CLAM's folder, Patho-Bench's and STAMP's tables, and the table that a run keeps of its own splits.
"""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl

from downstream.splits.split import LeakageError, SplitError
from downstream.splits.tables import (
    FoldTable,
    from_table,
    read_clam,
    read_patho_bench,
    read_stamp,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from fsspec import AbstractFileSystem

    from downstream.cohorts.cohort import Cohort

_CLAM_NAME = re.compile(r"splits_(\d+)(_bool)?\.csv")
_OTHERS = ("splits.parquet", "splits.csv", "splits.json", "k=all.tsv")
_OURS = {"repeat", "fold", "inner", "part", "patient_id"}
_ALLOWED = (
    "CLAM's folder of splits_<k>.csv (train, val, test) or one of them, Patho-Bench's k=all.tsv "
    "(case_id, slide_id, fold_0, ...), STAMP's splits.json, or a run's splits.parquet (repeat, "
    "fold, inner, part, patient_id), which may be a CSV"
)


def read_splits(path: str | PathLike[str], cohort: Cohort) -> FoldTable:
    """The folds that a user wants, on the patients of a cohort.

    A fold may have no validation part (STAMP's never have): `with_validation` takes one from the
    training patients before anything is decided.

    Args:
        path: Local path or URI of a file, or of a folder with CLAM's files or one of the others.
        cohort: Who there is.

    Returns:
        The splits; `missing` are ids of the file that are not in the cohort, `surplus` patients of
        the cohort that the file does not name, `notes` what was recognised.

    Raises:
        SplitError: No such file, none of the forms that are known, or a side without patients.
        LeakageError: A patient is on two sides of a fold.
    """
    slides = {
        slide: patient
        for patient, ids in cohort.patients.select("patient_id", "slide_ids").iter_rows()
        for slide in ids
    }
    try:
        form, found = _read(str(path), slides)
    except (SplitError, LeakageError) as error:
        msg = f"splits {str(path)!r}: {error}"
        raise type(error)(msg) from error
    note = f"splits are read as {form}, {len(found.splits)} of them"
    return replace(found, notes=(note, *found.notes))


def _read(path: str, slides: Mapping[str, str]) -> tuple[str, FoldTable]:
    """What form it has, and the splits."""
    import fsspec

    files, root = fsspec.core.url_to_fs(path)
    if files.isdir(root):
        return _folder(files, root, slides)
    try:
        content: bytes = files.cat_file(root)
    except FileNotFoundError as error:
        msg = f"there is no such file; allowed are {_ALLOWED}"
        raise SplitError(msg) from error
    return _file(content, root.rpartition("/")[2], slides)


def _folder(
    files: AbstractFileSystem, root: str, slides: Mapping[str, str]
) -> tuple[str, FoldTable]:
    """CLAM's folder, or one that holds a single one of the other files."""
    names = sorted(str(entry).rpartition("/")[2] for entry in files.ls(root, detail=False))
    # the `_bool` file of a fold sorts after the other, and says the same without padding
    clam = {int(match[1]): name for name in names if (match := _CLAM_NAME.fullmatch(name))}
    others = [name for name in names if name in _OTHERS]
    if len(others) + bool(clam) != 1:
        msg = f"the folder holds {others + list(clam.values()) or 'none of the known files'}; name "
        msg += f"one file, or a folder with one kind: {_ALLOWED}"
        raise SplitError(msg)
    if not clam:
        return _file(files.cat_file(f"{root}/{others[0]}"), others[0], slides)
    contents = {fold: files.cat_file(f"{root}/{name}") for fold, name in clam.items()}
    return "CLAM's", read_clam(contents, slides)


def _file(content: bytes, name: str, slides: Mapping[str, str]) -> tuple[str, FoldTable]:
    """A file by what it begins with."""
    try:
        if content.startswith(b"PAR1"):
            return "a run's", _ours(pl.read_parquet(io.BytesIO(content)), slides)
        if content.lstrip()[:1] in (b"{", b"["):
            return "STAMP's", read_stamp(content, slides)
        return _text(content, name, slides)
    except pl.exceptions.PolarsError as error:
        first = str(error).partition("\n")[0]
        msg = f"it cannot be read ({first}); allowed are {_ALLOWED}"
        raise SplitError(msg) from error


def _text(content: bytes, name: str, slides: Mapping[str, str]) -> tuple[str, FoldTable]:
    """A CSV or TSV by its columns."""
    separator = "\t" if b"\t" in content.partition(b"\n")[0] else ","
    header = pl.read_csv(io.BytesIO(content), separator=separator, infer_schema=False, n_rows=0)
    columns = set(header.columns)
    if columns >= _OURS:
        table = pl.read_csv(
            io.BytesIO(content), separator=separator, schema_overrides={"patient_id": pl.String}
        )
        return "a run's", _ours(table, slides)
    if any(column.startswith("fold_") for column in columns):
        return "Patho-Bench's", read_patho_bench(content, slides, separator=separator)
    if {"train", "val", "test"} <= columns:
        match = _CLAM_NAME.fullmatch(name)
        return "CLAM's", read_clam({int(match[1]) if match else 0: content}, slides)
    msg = f"it has columns {header.columns}; allowed are {_ALLOWED}"
    raise SplitError(msg)


def _ours(table: pl.DataFrame, slides: Mapping[str, str]) -> FoldTable:
    """The splits of a run on the patients that there are."""
    absent = _OURS - set(table.columns)
    if absent:
        msg = f"columns {sorted(absent)} are missing; allowed are {_ALLOWED}"
        raise SplitError(msg)
    known, named = set(slides.values()), set(table["patient_id"])
    splits = from_table(table.filter(pl.col("patient_id").is_in(known)))
    if not splits:
        msg = "none of its patients is in the cohort"
        raise SplitError(msg)
    return FoldTable(
        splits=tuple(splits),
        missing=tuple(sorted(named - known)),
        surplus=tuple(sorted(known - named)),
    )
