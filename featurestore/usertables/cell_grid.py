"""Cells of a table as its file has them, before anything is read into them.

CSV, XLSX and Parquet files all become a `CellGrid`; what follows is the same for all.
"""

from dataclasses import dataclass

import polars as pl

from featurestore.usertables.table_errors import TableError

UNNAMED = ("Unnamed:", "__UNNAMED__", "__index_level_")
"""How tools call the column of an index that has no name."""


@dataclass(frozen=True, kw_only=True)
class CellColumn:
    """The cells of one column.

    Attributes:
        texts: each cell as a user sees it, String; null where there is nothing.
        numbers: Float64, the number of each cell that stores a number; None where a file holds
            texts alone.
        dates: boolean, cells that hold a date; None where a file holds texts alone.
        native: the column in its file's own type, where that is not text (Parquet).
        is_text: whether the file declares the column as text, whatever it looks like (Parquet).
    """

    texts: pl.Series
    numbers: pl.Series | None = None
    dates: pl.Series | None = None
    native: pl.Series | None = None
    is_text: bool = False


@dataclass(frozen=True, kw_only=True)
class CellGrid:
    """The cells of a table.

    Attributes:
        header: names of the columns as the file has them.
        columns: cells of each column, in the order of `header`.
        rows: Int64, the number of each row in its file: the header of a CSV file is row 1, and so
            is the first row of a Parquet file, which has no header.
        decimal_comma: whether 1,5 may be a number: not where commas separate cells.
        notes: notes for the user on the reading, a sentence each.
    """

    header: list[str]
    columns: list[CellColumn]
    rows: pl.Series
    decimal_comma: bool
    notes: tuple[str, ...] = ()


def clean_name(name: str) -> str:
    r"""Return the name of a column without blanks at its ends, no-break spaces and BOM included.

    >>> clean_name("\ufeff slide_id\u00a0")
    'slide_id'
    """
    return name.strip("\ufeff\u200b \t\r\n\u00a0").strip()


def is_unnamed(name: str) -> bool:
    """Whether a column has no name, as the index that pandas writes."""
    return not name or name.startswith(UNNAMED)


def refuse_twins(header: list[str], name: str) -> None:
    """Raise TableError for two columns with one name.

    Raises:
        TableError: the name, and the places of both.
    """
    places: dict[str, int] = {}
    for place, column in enumerate(header, 1):
        if is_unnamed(column):
            continue
        if column in places:
            msg = (
                f"table {name!r}: columns {places[column]} and {place} are both called {column!r}; "
                "rename or remove one"
            )
            raise TableError(msg)
        places[column] = place
