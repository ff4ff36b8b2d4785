"""Splits from a user's file or folder, recognised by its content.

CLAM's folder, Patho-Bench's and STAMP's tables, and the table that a run keeps of its own splits.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING

import polars as pl

from downstream.splits.split import LeakageError, SplitError
from downstream.splits.split_tables import (
    FoldTable,
    from_table,
    read_clam,
    read_patho_bench,
    read_stamp,
)
from featurestore.storage import bucket_errors_explained, files_at

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from downstream.cohorts.cohort import Cohort
    from featurestore.usertables import UserTable

_CLAM_NAME = re.compile(r"splits_(\d+)(_bool)?\.csv")
_OTHERS = ("splits.parquet", "splits.csv", "splits.json", "k=all.tsv")
_OURS = {"repeat", "fold", "inner", "part", "patient_id"}
_ALLOWED = (
    "CLAM's folder of splits_<k>.csv (train, val, test) or one of them, Patho-Bench's k=all.tsv "
    "(case_id, slide_id, fold_0, ...), STAMP's splits.json, or a run's splits.parquet (repeat, "
    "fold, inner, part, patient_id), which may be a CSV"
)


def read_splits(path: str | PathLike[str], cohort: "Cohort") -> FoldTable:
    """Return the splits of a user's file or folder, on the patients of a cohort.

    A fold may have no validation part (STAMP's never have): `with_validation` splits one from the
    training patients before anything is decided.

    Args:
        path: local path or URI of a file, or of a folder with CLAM's files or one of the others.
        cohort: cohort of the patients.

    Returns:
        The splits; `missing` are ids of the file that are not in the cohort, `surplus` patients of
        the cohort that the file does not name, `notes` sentences on what was recognised.

    Raises:
        SplitError: No such file, an unknown form, or a side without patients.
        LeakageError: A patient is on two sides of a fold.
    """
    from featurestore.usertables import tables_raise

    slides = {
        slide: patient
        for patient, ids in cohort.patients.select("patient_id", "slide_ids").iter_rows()
        for slide in ids
    }
    distinct = cohort.distinct_ids
    try:
        with tables_raise(SplitError):
            form, splits = _read(str(path), slides, distinct=distinct)
    except (SplitError, LeakageError) as error:
        msg = f"splits {str(path)!r}: {error}"
        raise type(error)(msg) from error
    note = f"splits are read as {form}, {len(splits.splits)} of them"
    return replace(splits, notes=(note, *splits.notes))


def _read(path: str, slides: Mapping[str, str], *, distinct: bool) -> tuple[str, FoldTable]:
    """Return the form of a split file, and its splits."""
    with bucket_errors_explained(path):
        files, root = files_at(path)
        if files.isdir(root):
            return _read_folder(files, root, slides, distinct=distinct)
        try:
            content: bytes = files.cat_file(root)
        except FileNotFoundError as error:
            msg = f"there is no such file; allowed are {_ALLOWED}"
            raise SplitError(msg) from error
    return _read_file(content, root.rpartition("/")[2], slides, distinct=distinct)


def _read_folder(
    files: "AbstractFileSystem", root: str, slides: Mapping[str, str], *, distinct: bool
) -> tuple[str, FoldTable]:
    """Return the form and the splits of CLAM's folder, or of a folder with one other file."""
    names = sorted(str(entry).rpartition("/")[2] for entry in files.ls(root, detail=False))
    # the `_bool` file of a fold sorts after the other, and has the same content without padding
    clam = {int(match[1]): name for name in names if (match := _CLAM_NAME.fullmatch(name))}
    others = [name for name in names if name in _OTHERS]
    if len(others) + bool(clam) != 1:
        msg = f"the folder holds {others + list(clam.values()) or 'none of the known files'}; name "
        msg += f"one file, or a folder with one kind: {_ALLOWED}"
        raise SplitError(msg)
    if not clam:
        content: bytes = files.cat_file(f"{root}/{others[0]}")
        return _read_file(content, others[0], slides, distinct=distinct)
    contents = {fold: files.cat_file(f"{root}/{name}") for fold, name in clam.items()}
    return "CLAM's", read_clam(contents, slides, distinct=distinct)


def _read_file(
    content: bytes, name: str, slides: Mapping[str, str], *, distinct: bool
) -> tuple[str, FoldTable]:
    """Return the form of a file, recognised by its content, and its splits."""
    from featurestore.usertables import TableError, parse_table

    if content.lstrip()[:1] in (b"{", b"["):
        return "STAMP's", read_stamp(content, slides, distinct=distinct)
    try:
        table = parse_table(content, name=name, any_ending=True)
    except TableError as error:
        msg = f"it cannot be read ({error}); allowed are {_ALLOWED}"
        raise SplitError(msg) from error
    if all(table.has(column) for column in _OURS):
        return "a run's", _splits_of_run_table(table, slides, distinct=distinct)
    if any(column.startswith("fold_") for column in table.columns):
        return "Patho-Bench's", read_patho_bench(content, slides, distinct=distinct)
    if all(table.has(column) for column in ("train", "val", "test")):
        match = _CLAM_NAME.fullmatch(name)
        contents = {int(match[1]) if match else 0: content}
        return "CLAM's", read_clam(contents, slides, distinct=distinct)
    msg = f"it has columns {[*table.columns]}; allowed are {_ALLOWED}"
    raise SplitError(msg)


def _splits_of_run_table(
    table: "UserTable", slides: Mapping[str, str], *, distinct: bool
) -> FoldTable:
    """Return the splits of a run's own table, on the patients of the cohort."""
    from featurestore.usertables import refuse_near_others

    numbers = [table.integers(name).alias(name) for name in ("repeat", "fold", "inner")]
    texts = [table.texts(name).alias(name) for name in ("part", "patient_id")]
    rows = pl.DataFrame([*numbers, *texts])
    lake_patients, named = set(slides.values()), set(rows["patient_id"].drop_nulls())
    if not distinct:
        refuse_near_others(named - lake_patients, lake_patients, "splits", "the cohort")
    splits = from_table(rows.filter(pl.col("patient_id").is_in(lake_patients)))
    if not splits:
        msg = "none of its patients is in the cohort"
        raise SplitError(msg)
    return FoldTable(
        splits=tuple(splits),
        missing=tuple(sorted(named - lake_patients)),
        surplus=tuple(sorted(lake_patients - named)),
        notes=table.notes,
    )
