"""XLSX files: the first visible sheet to cells, each with its number and with what it shows.

Read here and not by a library, since the quick libraries return values without formats: a patient
0012 would be 12, and 12.10 would be 12.1.
"""

import io
import itertools
import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import polars as pl

from featurestore.usertables.cell_grid import CellColumn, CellGrid, clean_name
from featurestore.usertables.number_formats import (
    BUILT_IN,
    is_date_format,
    shown_date,
    shown_number,
)
from featurestore.usertables.table_errors import TableError

_OLE = b"\xd0\xcf\x11\xe0"
_ESCAPE = re.compile(r"_x([0-9A-Fa-f]{4})_")
_LETTERS = re.compile(r"([A-Z]+)(\d+)")


@dataclass(frozen=True)
class WorkbookCell:
    """A cell of a sheet.

    Attributes:
        text: displayed text, dates as YYYY-MM-DD.
        number: number of the cell, if it holds a number that is no date.
        is_date: whether it holds a date.
    """

    text: str
    number: float | None = None
    is_date: bool = False


@dataclass(frozen=True, kw_only=True)
class Style:
    """The number format of one cell style."""

    code: str
    is_date: bool


def read_workbook(content: bytes, name: str) -> CellGrid:
    """Return the cells of the first visible sheet; its first row that is not empty is the header.

    Raises:
        TableError: the file is no workbook, or has a password, a formula without a value, or a cell
            beside the header.
    """
    if content.startswith(_OLE):
        msg = f"table {name!r} has a password or is an old .xls; save it as .xlsx without one"
        raise TableError(msg)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            book = _Workbook(file, name)
            return _grid(book)
    except (zipfile.BadZipFile, zlib.error, ET.ParseError, KeyError, EOFError) as error:
        msg = f"table {name!r} can't be read as xlsx: {error}"
        raise TableError(msg) from error


class _Workbook:
    """The parts of a workbook that its first visible sheet needs."""

    def __init__(self, file: zipfile.ZipFile, name: str) -> None:
        self.file, self.name = file, name
        main = _related(file, "")["officeDocument"][0][1]
        self._targets = _related(file, main)
        book = _parsed(file, main)
        self.since_1904 = any(
            element.get("date1904") in {"1", "true"} for element in _children(book, "workbookPr")
        )
        sheets = [s for s in _children(book, "sheet") if s.get("state", "visible") == "visible"]
        if not sheets:
            msg = f"table {name!r} has no visible sheet"
            raise TableError(msg)
        self.sheet, self.sheets = sheets[0].get("name", ""), len(sheets)
        relation_id = next(
            identifier for key, identifier in sheets[0].items() if _local(key) == "id"
        )
        self._part = next(part for key, part in self._targets["worksheet"] if key == relation_id)
        self.texts = self._shared_texts()
        self.styles = self._styles()

    def rows(self) -> Iterator[tuple[int, dict[int, WorkbookCell]]]:
        """Return each row's number and its non-empty cells by column, counted from 0."""
        number = 0
        with self.file.open(self._part) as stream:
            for _, element in ET.iterparse(stream):
                if _local(element.tag) != "row":
                    continue
                number = int(element.get("r") or number + 1)
                cells = dict(self._cells(element, number))
                if cells:
                    yield number, cells
                element.clear()

    def _cells(self, row: ET.Element, number: int) -> Iterator[tuple[int, WorkbookCell]]:
        place = -1
        for element in row:
            place += 1
            if match := _LETTERS.fullmatch(element.get("r") or ""):
                place = _column_number(match[1])
            cell = self._cell(element, place, number)
            if cell is not None and cell.text.strip():
                yield place, cell

    def _cell(self, element: ET.Element, place: int, number: int) -> WorkbookCell | None:
        kind = element.get("t", "n")
        if kind == "inlineStr":
            return WorkbookCell(_text_of(element))
        text = next((child.text for child in element if _local(child.tag) == "v"), None)
        if text is None:
            if any(_local(child.tag) == "f" for child in element):
                msg = (
                    f"table {self.name!r}, row {number}, column {place + 1}: a formula without its "
                    "value; open the table in a spreadsheet and save it"
                )
                raise TableError(msg)
            return None
        if kind == "s":
            return WorkbookCell(self.texts[int(text)])
        if kind == "b":
            return WorkbookCell("true" if text == "1" else "false")
        if kind == "d":
            return WorkbookCell(text.replace("T", " ").removesuffix(" 00:00:00"), is_date=True)
        return (
            WorkbookCell(_unescaped(text)) if kind in {"str", "e"} else self._number(element, text)
        )

    def _number(self, element: ET.Element, text: str) -> WorkbookCell:
        style = self.styles[int(element.get("s") or 0)] if self.styles else None
        number = float(text)
        if style is not None and style.is_date:
            return WorkbookCell(shown_date(number, since_1904=self.since_1904), is_date=True)
        return WorkbookCell(shown_number(number, style.code if style else "General"), number)

    def _shared_texts(self) -> list[str]:
        parts = self._targets.get("sharedStrings", [])
        if not parts:
            return []
        return [_text_of(element) for element in _parsed(self.file, parts[0][1])]

    def _styles(self) -> list[Style]:
        """Return the number format of each cell style, in the order of the style numbers."""
        parts = self._targets.get("styles", [])
        if not parts:
            return []
        root = _parsed(self.file, parts[0][1])
        codes = {
            int(element.get("numFmtId", "0")): element.get("formatCode", "")
            for element in _children(root, "numFmt")
        }
        lists = [element for element in root if _local(element.tag) == "cellXfs"]
        numbers = [int(xf.get("numFmtId", "0")) for element in lists for xf in element]
        return [
            Style(
                code=codes.get(number, BUILT_IN.get(number, "General")),
                is_date=is_date_format(number, codes.get(number, "")),
            )
            for number in numbers
        ]


def _grid(book: _Workbook) -> CellGrid:
    rows = book.rows()
    first = next(rows, None)
    if first is None:
        msg = f"table {book.name!r}: its sheet {book.sheet!r} is empty; row 1 names the columns"
        raise TableError(msg)
    width = max(first[1]) + 1
    header = [clean_name(first[1][at].text) if at in first[1] else "" for at in range(width)]
    records = list(rows)
    for number, cells in records:
        if max(cells) >= width:
            msg = (
                f"table {book.name!r}, row {number}: a cell in column {max(cells) + 1}, but the "
                f"header (row {first[0]}) has {width}; the first row names all columns"
            )
            raise TableError(msg)
    notes: tuple[str, ...] = ()
    if book.sheets > 1:
        notes = (f"{book.name}: sheet {book.sheet!r} is read, the first of {book.sheets}",)
    return CellGrid(
        header=header,
        columns=[_column([cells.get(at) for _, cells in records]) for at in range(width)],
        rows=pl.Series(values=[number for number, _ in records], dtype=pl.Int64),
        decimal_comma=True,
        notes=notes,
    )


def _column(cells: list[WorkbookCell | None]) -> CellColumn:
    return CellColumn(
        texts=pl.Series(values=[cell and cell.text for cell in cells], dtype=pl.String),
        numbers=pl.Series(values=[cell and cell.number for cell in cells], dtype=pl.Float64),
        dates=pl.Series(values=[bool(cell and cell.is_date) for cell in cells], dtype=pl.Boolean),
    )


def _related(file: zipfile.ZipFile, part: str) -> dict[str, list[tuple[str, str]]]:
    """Return what a part refers to: kind -> its ids and paths."""
    folder, base = posixpath.split(part)
    root = _parsed(file, posixpath.join(folder, "_rels", f"{base}.rels"))
    related: dict[str, list[tuple[str, str]]] = {}
    for element in root:
        kind = element.get("Type", "").rpartition("/")[2]
        target = posixpath.normpath(posixpath.join("/", folder, element.get("Target", "")))
        related.setdefault(kind, []).append((element.get("Id", ""), target.lstrip("/")))
    return related


def _parsed(file: zipfile.ZipFile, part: str) -> ET.Element:
    return ET.fromstring(file.read(part))


def _children(root: ET.Element, name: str) -> Iterator[ET.Element]:
    return (element for element in root.iter() if _local(element.tag) == name)


def _local(tag: str) -> str:
    """Return a name without its namespace: there are two of them, by year of the standard."""
    return tag.rpartition("}")[2]


def _text_of(element: ET.Element) -> str:
    """Return the text of a string item; how it is pronounced (rPh) is no part of it."""
    parts = itertools.chain.from_iterable(
        [child] if _local(child.tag) == "t" else child
        for child in element
        if _local(child.tag) in {"t", "r", "is"}
    )
    flat: list[str] = []
    for part in parts:
        if _local(part.tag) == "t":
            flat.append(part.text or "")
        elif _local(part.tag) == "r":
            flat += [run.text or "" for run in part if _local(run.tag) == "t"]
    return _unescaped("".join(flat))


def _unescaped(text: str) -> str:
    """Return a text with Excel's escapes of characters decoded."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text) if "_x" in text else text


def _column_number(letters: str) -> int:
    number = 0
    for letter in letters:
        number = 26 * number + ord(letter) - ord("A") + 1
    return number - 1
