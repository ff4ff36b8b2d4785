"""Answers to queries: a table for people; CSV, JSON and Parquet for everything else."""

import io
from pathlib import Path

import polars as pl

from featurestore.errors import LakeError

FORMATS = ("table", "csv", "json", "parquet")


def answer_format(form: str | None, out: Path | None) -> str:
    """Return the format of an answer: `form`, else by the file's name, else a table.

    Raises:
        LakeError: the format is unknown, or needs a file and `out` is None, or the file's folder is
            not there.
    """
    if form is None and out is not None:
        form = out.suffix.lower().lstrip(".")
        if form not in FORMATS:
            msg = f"{out} does not say which format: name it .csv, .json or .parquet, or --format"
            raise LakeError(msg)
    form = form or "table"
    if form not in FORMATS:
        msg = f"format '{form}' given; there are: {', '.join(FORMATS)}"
        raise LakeError(msg)
    if form == "parquet" and out is None:
        msg = "Parquet goes to a file: --format parquet --out answer.parquet"
        raise LakeError(msg)
    if out is not None and not out.parent.is_dir():
        msg = f"folder {out.parent} of --out {out} does not exist: make it first"
        raise LakeError(msg)
    return form


def answer_bytes(frame: pl.DataFrame, form: str) -> bytes:
    """Return an answer in one of `FORMATS`; JSON is a list of rows as objects.

    Raises:
        LakeError: CSV of columns that are no plain values.
    """
    if form == "table":
        return _table(frame).encode()
    file = io.BytesIO()
    if form == "json":
        frame.write_json(file)
    elif form == "parquet":
        frame.write_parquet(file)
    else:
        _check_csv(frame)
        frame.write_csv(file)
    return file.getvalue()


def write_answer(frame: pl.DataFrame, form: str, out: Path) -> None:
    """Write an answer to a file, which is there whole or not at all."""
    content = answer_bytes(frame, form)
    part = out.with_name(f"{out.name}.part")
    part.write_bytes(content)
    part.replace(out)


#: Columns of a table that a terminal shows side by side.
SIDE_BY_SIDE = 9
SHOWN_ROWS, SHOWN_CHARACTERS = 50, 60


def records_text(frame: pl.DataFrame) -> str:
    """Return rows one below the other, a line for each column; long values are cut.

    >>> print(records_text(pl.DataFrame({"slide_id": ["a"], "width_px": [None]})))
    row 1
      slide_id  a
      width_px  null
    """
    width = max(map(len, frame.columns), default=0)
    lines = []
    for number, row in enumerate(frame.head(SHOWN_ROWS).iter_rows(), 1):
        lines.append(f"row {number}")
        for name, entry in zip(frame.columns, row, strict=True):
            text = "null" if entry is None else " ".join(str(entry).split())
            cut = f"{text[:SHOWN_CHARACTERS]}…" if len(text) > SHOWN_CHARACTERS else text
            lines.append(f"  {name:{width}}  {cut}")
    if frame.height > SHOWN_ROWS:
        lines.append(f"… {frame.height - SHOWN_ROWS:,} more rows; --out FILE writes all")
    return "\n".join(lines)


def _table(frame: pl.DataFrame) -> str:
    if frame.width > SIDE_BY_SIDE:
        return records_text(frame)
    with pl.Config(
        tbl_rows=SHOWN_ROWS,
        tbl_cols=-1,
        tbl_hide_dataframe_shape=True,
        fmt_str_lengths=SHOWN_CHARACTERS,
    ):
        return str(frame)


def _check_csv(frame: pl.DataFrame) -> None:
    types = frame.schema.items()
    if wrong := [name for name, dtype in types if dtype.is_nested() or dtype == pl.Binary()]:
        msg = (
            f"CSV can't hold {', '.join(wrong)} (features are lists of numbers): "
            "use parquet or json, or select other columns"
        )
        raise LakeError(msg)
