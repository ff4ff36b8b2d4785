"""CSV and TSV files: bytes to cells, whatever their separator, line ends and encoding.

Rows are counted as a spreadsheet shows them: the header is row 1, and a cell with a line break in
quotes does not count twice. Nothing is repaired in silence: a row of another length is an error.
"""

import codecs
import csv
import io
import itertools
import re
from collections.abc import Iterator

import polars as pl

from featurestore.messages import counted
from featurestore.usertables.cell_grid import CellColumn, CellGrid, clean_name, is_unnamed
from featurestore.usertables.table_errors import TableError

SEPARATORS = ("\t", ";", ",")
SAMPLE = 50
"""Rows that decide which separator a file has."""
SEPARATOR_LINE = re.compile(r"sep=(.)\s*")
"""The first line by which Excel names the separator."""


def read_delimited(content: bytes, name: str) -> CellGrid:
    """Return the cells of a text file.

    Raises:
        TableError: the file is empty or no text, a row has more or fewer cells than the header, or
            a quote is never closed.
    """
    text = _decoded_text(content)
    separator, rows = _records(text, name)
    first = next(rows, None)
    if first is None:
        msg = f"table {name!r} is empty; its first row names the columns"
        raise TableError(msg)
    header = [clean_name(cell) for cell in first[1]]
    numbers, records = [], []
    for number, cells in rows:
        records.append(_fitted_cells(cells, header, number, name))
        numbers.append(number)
    texts: list[tuple[str, ...]] = (
        list(zip(*records, strict=True)) if records else [()] * len(header)
    )
    _refuse_bytes(texts, header, numbers, name)
    return CellGrid(
        header=header,
        columns=[CellColumn(texts=pl.Series(values=cells, dtype=pl.String)) for cells in texts],
        rows=pl.Series(values=numbers, dtype=pl.Int64),
        decimal_comma=separator != ",",
    )


def _decoded_text(content: bytes) -> str:
    """Return the text; bytes that are no UTF-8 stay in it as lone surrogates."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    return content.decode("utf-8-sig", errors="surrogateescape")


def _records(text: str, name: str) -> tuple[str, Iterator[tuple[int, list[str]]]]:
    """Return the separator, and (number, cells) of every row that is not empty."""
    first, _, rest = text.partition("\n")
    if named_separator := SEPARATOR_LINE.fullmatch(first.strip("\r")):
        return named_separator[1], _numbered_records(rest, named_separator[1], name, start=2)
    separator = _separator(text, name)
    return separator, _numbered_records(text, separator, name, start=1)


def _numbered_records(
    text: str, separator: str, name: str, *, start: int
) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    number = start
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            msg = f"table {name!r}, row {number}: {error}; a quote in a cell is written twice"
            raise TableError(msg) from error
        if any(cell and not cell.isspace() for cell in cells):
            yield number, cells
        number += 1


def _separator(text: str, name: str) -> str:
    """Return the separator that splits the header into most columns, and the rows into as many."""

    def merit(separator: str) -> tuple[bool, int]:
        rows = _numbered_records(text, separator, name, start=1)
        try:
            widths = [len(cells) for _, cells in itertools.islice(rows, SAMPLE)]
        except TableError:  # a quote may stand in another place with another separator
            return False, 0
        first = max(widths[:1], default=0)
        return first > 1 and len(set(widths)) == 1, first

    best = max(SEPARATORS, key=merit)
    if merit(best)[1] > 1:
        return best
    return "\t" if name.lower().endswith(".tsv") else ","


def _fitted_cells(cells: list[str], header: list[str], number: int, name: str) -> list[str]:
    """Return as many cells as the header has; what is cut off or filled up is empty.

    Raises:
        TableError: a cell beyond the header, a row that ends before its last column, or the header
            once more.
    """
    width = len(header)
    if len(cells) != width:
        tail = cells[width:] if len(cells) > width else header[len(cells) :]
        if any(clean_name(cell) for cell in tail):
            msg = (
                f"table {name!r}, row {number}: {counted(len(cells), 'cell')}, but the header "
                f"has {width}; "
                "write each cell that holds a separator in quotes, and each empty one as nothing"
            )
            raise TableError(msg)
        cells = [*cells, *[""] * width][:width]
    if cells == header and not all(is_unnamed(cell) for cell in header):
        msg = f"table {name!r}, row {number} is the header once more; remove it"
        raise TableError(msg)
    return cells


def _refuse_bytes(
    texts: list[tuple[str, ...]], header: list[str], numbers: list[int], name: str
) -> None:
    """Refuse what is no UTF-8 or no text at all.

    Raises:
        TableError: the first such cell.
    """
    for column, cells in zip(header, texts, strict=True):
        joined = "".join(cells)
        if joined.isascii() and "\0" not in joined:
            continue
        for number, cell in zip(numbers, cells, strict=True):
            wrong = re.search("[\udc80-\udcff\0]", cell)
            if wrong:
                byte = ord(wrong[0]) & 0xFF
                msg = (
                    f"table {name!r}, row {number}, column {column!r}: byte 0x{byte:02X} is no "
                    "UTF-8 text (Latin-1, or no table?); save the table as UTF-8"
                )
                raise TableError(msg)
    if wrong := re.search("[\udc80-\udcff\0]", "".join(header)):
        msg = f"table {name!r}: its header holds bytes that are no UTF-8 text; save it as UTF-8"
        raise TableError(msg)
