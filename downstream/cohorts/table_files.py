"""A table from a file of any kind that people keep labels in: CSV, TSV, XLSX, Parquet.

What stands for a missing value is null, and it is told where that was a word.
"""

from __future__ import annotations

import io
from collections import Counter
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from os import PathLike

ENDINGS = (".csv", ".tsv", ".xlsx", ".parquet")
_SHOWN = 10
"""Most ids that one message lists."""


class CohortError(ValueError):
    """Labels that cannot be read, contradict themselves, or do not meet the lake."""


def read_label_bytes(path: str | PathLike[str]) -> bytes:
    """The bytes of a label file, local or at any URI that fsspec knows.

    Raises:
        CohortError: The file does not exist.
    """
    import fsspec

    try:
        with fsspec.open(str(path), "rb") as file:
            content: bytes = file.read()
    except FileNotFoundError as error:
        msg = f"there is no label file at {str(path)!r}; give one of {', '.join(ENDINGS)}"
        raise CohortError(msg) from error
    return content


def parse_table(
    content: bytes, *, name: str, is_text: Callable[[str], bool]
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Any table from the bytes of a file, and what was read as no value.

    Words that pandas takes for a missing value ("NA", "None", ...) are null, since the tools that
    these tables are written for read them with pandas. Parquet has nulls of its own.

    Args:
        content: The file.
        name: Its name, for the ending and for messages.
        is_text: Whether a column of this name is to be kept as text.

    Raises:
        CohortError: Another ending, or an unreadable file.
    """
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in ENDINGS:
        msg = f"table {name!r} ends in {suffix!r}; allowed are {', '.join(ENDINGS)}"
        raise CohortError(msg)
    try:
        table, words = _read(content, suffix, is_text)
    except (pl.exceptions.PolarsError, ValueError) as error:
        first = str(error).partition("\n")[0]
        msg = f"table {name!r} cannot be read as {suffix[1:]}: {first}"
        raise CohortError(msg) from error
    # pandas writes its index as a column without a name
    unnamed = [n for n in table.columns if not n or n.startswith(("Unnamed:", "__UNNAMED__"))]
    notes = [f"column {column!r}: {count} cells read {word!r}, taken as no value"
             for (column, word), count in words.items() if column not in unnamed]  # fmt: skip
    return table.drop(unnamed), tuple(notes)


def listing(ids: Sequence[str]) -> str:
    """Ids for a message, the first ten and how many more.

    >>> listing(["a", "b"])
    'a, b'
    """
    more = len(ids) - _SHOWN
    return ", ".join(ids[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def missing_words() -> list[str]:
    """Words that pandas takes for a missing value, and the empty one."""
    # on use: the package opens Lance tables, which takes time that a command's help does not have
    from featurestore.interop.tables import NULLS

    return NULLS


def _read(
    content: bytes, suffix: str, is_text: Callable[[str], bool]
) -> tuple[pl.DataFrame, dict[tuple[str, str], int]]:
    """The table, and per column and word how many cells were read as no value."""
    if suffix == ".parquet":
        return pl.read_parquet(io.BytesIO(content)), {}
    if suffix == ".xlsx":
        sheet = _first_sheet(content)
        nulls = dict.fromkeys(missing_words())
        return sheet.with_columns(pl.col(pl.String).replace(nulls)), _words(sheet)
    separator = "\t" if suffix == ".tsv" else ","
    raw = pl.read_csv(io.BytesIO(content), separator=separator, infer_schema=False)
    texts = [name for name in raw.columns if is_text(name)]
    table = pl.read_csv(
        io.BytesIO(content),
        separator=separator,
        null_values=missing_words(),
        # a column whose first hundred rows look whole may hold 3.5 further down
        infer_schema_length=None,
        schema_overrides=dict.fromkeys(texts, pl.String),
    )
    return table, _words(raw)


def _first_sheet(content: bytes) -> pl.DataFrame:
    import fastexcel

    try:
        return pl.read_excel(io.BytesIO(content), infer_schema_length=None)
    except fastexcel.FastExcelError as error:
        raise ValueError(str(error)) from error


def _words(raw: pl.DataFrame) -> dict[tuple[str, str], int]:
    """Per column and word that stands for no value: how many cells."""
    texts, words = raw.select(pl.selectors.string()), set(missing_words())
    return {
        (column, word): count
        for column in texts.columns
        for word, count in Counter(texts[column]).items()
        if word and word in words
    }
