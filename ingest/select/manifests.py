"""Manifests: tables of slides that a user writes, one file, folder or glob a row.

Read as every other table is (`featurestore.usertables`): ids are text, a cell that can't be read is
named by row and column. Paths are relative to the manifest.
"""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import polars as pl

from featurestore.usertables import (
    UserTable,
    id_column,
    parse_table,
    refuse_near,
    tables_raise,
)
from ingest.errors import InputError, SlideError
from ingest.remote.remote_errors import as_slide_errors
from ingest.remote.remote_files import open_fs

MANIFESTS = (".csv", ".tsv", ".xlsx", ".parquet")
SITES = ("site", "centre", "center", "hospital", "institution", "tissue_source_site")
"""What columns of sites are called."""
_OWN = ("uri", "mpp")


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """The facts of one row of a manifest, on a slide or the slides of a folder or glob.

    Attributes:
        uri: absolute path or URL of the slide, folder or glob.
        slide_id: id of the one slide; None if the file's name is to be it.
        patient_id: patient of all slides of the row.
        mpp: microns per pixel of their level 0.
        extra: values of the other columns; null cells are None.
        place: manifest and row, for messages.
    """

    uri: str
    slide_id: str | None
    patient_id: str | None
    mpp: float | None
    extra: dict[str, Any]
    place: str


def is_manifest(text: str) -> bool:
    """Whether an input that a user gave is a manifest by its ending.

    >>> is_manifest("slides.CSV"), is_manifest("slides.svs")
    (True, False)
    """
    return PurePosixPath(text).suffix.lower() in MANIFESTS


def read_manifest(text: str, *, distinct_ids: bool = False) -> list[ManifestRow]:
    """Return the rows of a manifest.

    Args:
        text: path or URL of the table.
        distinct_ids: whether ids and sites that differ by case, blanks or Unicode form only are
            different; else they are refused.

    Raises:
        InputError: the table can't be read, has no column for the file, or has a wrong cell.
    """
    with tables_raise(InputError):
        table = parse_table(_content(text), name=text)
        if not table.has("uri"):
            msg = f"manifest {text} needs a column 'uri'; it has {', '.join(table.columns)}"
            raise InputError(msg)
        rows = _columns(table, distinct=distinct_ids)
        extra = _extra(table, distinct=distinct_ids)
    folder = text.rpartition("/")[0] or "."
    return [
        ManifestRow(
            **{**own, "uri": _absolute(own["uri"], folder)},
            extra=dict(others),
            place=f"manifest {text}, row {number}",
        )
        for own, others, number in zip(rows, extra, table.rows, strict=True)
    ]


def _content(text: str) -> bytes:
    try:
        with as_slide_errors(text):
            fs, path = open_fs(text)
            content: bytes = fs.cat_file(path)
            return content
    except SlideError as error:
        msg = f"manifest {text} can't be read: {error}"
        raise InputError(msg) from error


def _columns(table: UserTable, *, distinct: bool) -> list[dict[str, Any]]:
    """Return uri, slide_id, patient_id and mpp of each row."""
    uris = table.texts("uri")
    if uris.null_count():
        number = table.rows[int(uris.is_null().arg_true()[0])]
        msg = f"manifest {table.name}, row {number} has no uri; every row names a file or URL"
        raise InputError(msg)
    slides, patients = (
        None if column is None else table.ids(column, distinct=distinct)
        for column in (_id_column(table, "slide_id"), id_column(table, "patient_id"))
    )
    mpps = table.numbers("mpp") if table.has("mpp") else None
    if mpps is not None:
        _refuse_mpps(table, mpps)
    empty = [None] * table.height
    return [
        {"uri": uri, "slide_id": slide, "patient_id": patient, "mpp": mpp}
        for uri, slide, patient, mpp in zip(
            uris,
            empty if slides is None else slides,
            empty if patients is None else patients,
            empty if mpps is None else mpps,
            strict=True,
        )
    ]


def _id_column(table: UserTable, name: str) -> str | None:
    """Return the column of slide_ids, or None; a manifest's column `filename` is no such column."""
    return table.column(name) if table.has(name) else None


def _refuse_mpps(table: UserTable, mpps: pl.Series) -> None:
    """Refuse cells that can be no mpp.

    Raises:
        InputError: a cell can be no mpp; the message names the first.
    """
    wrong = ((mpps <= 0) | ~mpps.is_finite()).fill_null(value=False).arg_true()
    if len(wrong):
        at = int(wrong[0])
        msg = (
            f"manifest {table.name}, row {table.rows[at]}, column 'mpp': {mpps[at]:g}; microns per "
            "pixel are more than 0, an empty cell leaves them to the file"
        )
        raise InputError(msg)


def _extra(table: UserTable, *, distinct: bool) -> list[dict[str, Any]]:
    """Return the values of each row's other columns, which are only kept; 12.10 stays text."""
    patient = id_column(table, "patient_id")
    used = {patient, *table.find([*_OWN, "slide_id"])}
    others = [column for column in table.columns if column not in used]
    if not others:
        return [{} for _ in range(table.height)]
    sites = set(table.find(SITES))
    if not distinct:
        for column in others:
            if column in sites:
                names = table.texts(column).drop_nulls().unique()
                refuse_near(names, f"manifest {table.name}, column {column!r}")
    return pl.DataFrame([table.exact_values(column) for column in others]).to_dicts()


def _absolute(uri: str, folder: str) -> str:
    return uri if "://" in uri or uri.startswith(("/", "~")) else f"{folder}/{uri}"
