"""A user's table, read by what a column is needed for: as text, as numbers, as whole numbers.

Nothing is converted before it is known what it is needed for: an id 0012 stays text, and a comment
that looks like a number does no harm. A cell that can't be read is named by row and column.
"""

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import polars as pl

from featurestore.usertables.cell_grid import (
    CellColumn,
    CellGrid,
    clean_name,
    is_unnamed,
    refuse_twins,
)
from featurestore.usertables.near_ids import near_key, refuse_near
from featurestore.usertables.numbers import (
    LEADING_ZERO,
    WHOLE,
    has_commas,
    has_points,
    parsed,
    trimmed,
    why_no_number,
)
from featurestore.usertables.table_errors import TableError

#: What pandas takes for a missing value; these tables are written for tools that read with it.
MISSING_WORDS = frozenset({
    "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>",
    "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
})  # fmt: skip
FAULTS = r"^#(DIV/0!|REF!|NAME\?|VALUE!|NUM!|NULL!|SPILL!|CALC!|GETTING_DATA)$"
SHORTENED = r"^\d(\.\d+)?E\+\d+$"
"""An id of many digits after a spreadsheet has written it to CSV."""
MOST_CODES = 20
"""A column of more different numbers than these is a measurement, and texts in it are mistakes."""
_EXACT = 2.0**53
_SPREADSHEET = 1e15


@dataclass(frozen=True, kw_only=True)
class UserTable:
    """A user's table, with typed access to its columns.

    Attributes:
        name: name of its file, for messages.
        columns: names of its columns without blanks at their ends; an index without a name is left
            out.
        rows: number of each row in its file, for messages.
        notes: words read as no value, and other notes for the user.
        sha256: SHA-256 of the file's bytes.
        index: cells of the column without a name, or None.
    """

    name: str
    columns: tuple[str, ...]
    rows: pl.Series
    notes: tuple[str, ...]
    sha256: str
    index: pl.Series | None = None
    decimal_comma: bool = True
    _cells: dict[str, CellColumn] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, grid: CellGrid, *, name: str, sha256: str) -> "UserTable":
        """Return the table of a file's cells.

        Raises:
            TableError: two columns with one name.
        """
        header = [clean_name(column) for column in grid.header]
        refuse_twins(header, name)
        named = {
            column: cells
            for column, cells in zip(header, grid.columns, strict=True)
            if not is_unnamed(column)
        }
        indexes = [
            cells.texts
            for column, cells in zip(header, grid.columns, strict=True)
            if is_unnamed(column)
        ]
        notes = [*grid.notes, *_nameless(header, grid.columns)]
        cleaned = {}
        for column, cells in named.items():
            cleaned[column], words = _without_words(cells)
            notes += [f"column {column!r}: {count} cells read {word!r}, taken as no value"
                      for word, count in words.items()]  # fmt: skip
        return cls(
            name=name,
            columns=tuple(named),
            rows=grid.rows,
            notes=tuple(notes),
            sha256=sha256,
            index=indexes[0] if indexes else None,
            decimal_comma=grid.decimal_comma,
            _cells=cleaned,
        )

    @property
    def height(self) -> int:
        """Return the number of rows, without the header and empty rows."""
        return len(self.rows)

    # ------------------------------------------------------------------ columns by name

    def column(self, name: str) -> str:
        """Return the column with a name: an exact match, else a match without case and blanks.

        Raises:
            TableError: no column matches, or several do.
        """
        if name in self.columns:
            return name
        near = self._near.get(_header_key(name), [])
        if len(near) == 1:
            return near[0]
        if near:
            msg = f"table {self.name!r} has the columns {', '.join(map(repr, near))}; "
            msg += f"{name!r} may be each of them: write it as it is"
            raise TableError(msg)
        close = difflib.get_close_matches(name, self.columns, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        msg = f"table {self.name!r} has no column {name!r}; it has {', '.join(self.columns)}{hint}"
        raise TableError(msg)

    def find(self, names: Iterable[str]) -> list[str]:
        """Return the columns that have one of these names, but for case and blanks."""
        keys = {_header_key(name) for name in names}
        return [column for column in self.columns if _header_key(column) in keys]

    def has(self, name: str) -> bool:
        """Whether a column has this name, but for case and blanks."""
        return bool(self.find([name]))

    @cached_property
    def _near(self) -> dict[str, list[str]]:
        near: dict[str, list[str]] = {}
        for column in self.columns:
            near.setdefault(_header_key(column), []).append(column)
        return near

    # ------------------------------------------------------------------ cells

    def texts(self, name: str) -> pl.Series:
        """Return each cell of a column as text, to the letter; null for no value.

        Raises:
            TableError: no such column, or a cell that shows a failed formula.
        """
        column = self.column(name)
        texts = self._cells[column].texts.rename(column)
        self._refuse(column, texts.str.contains(FAULTS), lambda _: "is a spreadsheet's error")
        return texts

    def ids(self, name: str, *, distinct: bool = False) -> pl.Series:
        """Return the ids of slides, patients or sites in a column, as text to the letter.

        Args:
            name: name of the column.
            distinct: whether ids that differ by case, blanks or Unicode form only are different
                (`--distinct-ids`); else they are refused.

        Raises:
            TableError: no such column; two such ids; a date, or a number that a spreadsheet has
                shortened, where an id was.
        """
        column = self.column(name)
        texts, cells = self.texts(column), self._cells[column]
        if cells.dates is not None:
            self._refuse(
                column,
                cells.dates,
                lambda _: "is a date where an id should be; make the cell a text",
            )
        self._refuse(
            column,
            texts.str.contains(SHORTENED),
            lambda _: "is a number that a spreadsheet has shortened; write the id as text",
        )
        if cells.numbers is not None and cells.native is None:
            self._refuse(column, cells.numbers.abs() >= _SPREADSHEET, _too_long)
        if not distinct:
            refuse_near(texts.drop_nulls().unique(), self._place(column), rows=self._first(texts))
        return texts

    def numbers(self, name: str) -> pl.Series:
        """Return the numbers of a column, Float64; null for no value.

        Raises:
            TableError: no such column, a cell that holds no number, or 1.5 and 1,5 in one column.
        """
        column = self.column(name)
        cells, texts = self._cells[column], self.texts(column)
        self._refuse_mixed_marks(column)
        numbers = self._parsed(column)
        is_date = _none_of(texts) if cells.dates is None else cells.dates
        self._refuse(
            column,
            texts.is_not_null() & (numbers.is_null() | is_date),
            lambda at: why_no_number(
                str(texts[at]), decimal_comma=self.decimal_comma, is_date=bool(is_date[at])
            ),
        )
        return numbers

    def integers(self, name: str) -> pl.Series:
        """Return the whole numbers of a column, Int64, exact; null for no value.

        Raises:
            TableError: no such column, a cell that holds no whole number, or one of so many digits
                that a spreadsheet has rounded it.
        """
        column = self.column(name)
        cells = self._cells[column]
        if cells.native is not None and cells.native.dtype.is_integer():
            return cells.native.cast(pl.Int64).rename(column)
        texts, numbers = trimmed(self.texts(column)), self.numbers(column)
        if cells.numbers is not None and cells.native is None:
            self._refuse(column, cells.numbers.abs() >= _SPREADSHEET, _too_long)
        exact = texts.str.contains(r"^[+-]?\d{1,19}$")
        is_whole = exact | ((numbers == numbers.floor()) & (numbers.abs() < _EXACT))
        self._refuse(column, ~is_whole, lambda _: "is no whole number")
        digits = texts.set(~exact.fill_null(value=True), None).str.to_integer(strict=False)
        rest = numbers.set(exact.fill_null(value=False), None).cast(pl.Int64, strict=False)
        return digits.cast(pl.Int64).zip_with(digits.is_not_null(), rest).rename(column)

    def values(self, name: str, *, strict: bool = True) -> pl.Series:
        """Return a column with its inferred type: booleans, whole numbers, numbers, or text.

        Args:
            name: name of the column.
            strict: refuse a column of numbers in which some cells are none; else it is text.

        Raises:
            TableError: no such column, or (if strict) cells that can't be read among numbers.
        """
        column = self.column(name)
        cells = self._cells[column]
        if cells.native is not None:
            return cells.native.rename(column)
        texts = self.texts(column) if strict else cells.texts.rename(column)
        if cells.is_text:
            return texts
        plain = trimmed(texts).drop_nulls()
        if cells.dates is not None and bool(cells.dates.any()):
            return texts
        lower = plain.str.to_lowercase()
        if len(plain) and bool(lower.is_in(["true", "false"]).all()):
            return (trimmed(texts).str.to_lowercase() == "true").rename(column)
        if bool(plain.str.contains(LEADING_ZERO).any()):
            return texts
        numbers = self._parsed(column)
        if len(plain) and numbers.null_count() == texts.null_count():
            if strict:
                self._refuse_mixed_marks(column)
            elif self._marks_differ(column):
                return texts
            return self._narrow(column, numbers, plain)
        if strict:
            self._refuse_among_numbers(column, numbers)
        return texts

    def exact_values(self, name: str) -> pl.Series:
        """Return a column as numbers if they hold all that its texts hold, else as text.

        12.10 is then no 12.1: for columns that are only kept.
        """
        typed = self.values(name, strict=False)
        if not typed.dtype.is_float() or self._cells[typed.name].native is not None:
            return typed
        texts = self._cells[typed.name].texts.rename(typed.name)
        same = typed.cast(pl.String) == trimmed(texts)
        return typed if bool(same.all()) else texts

    def frame(self) -> pl.DataFrame:
        """Return all columns with inferred types, see `values`; a column of mixed cells is text."""
        return pl.DataFrame([self.values(column, strict=False) for column in self.columns])

    def renamed(self, names: dict[str, str]) -> "UserTable":
        """Return the table with other names of some columns."""
        cells = {names.get(column, column): part for column, part in self._cells.items()}
        return replace(self, columns=tuple(cells), _cells=cells)

    # ------------------------------------------------------------------ helpers

    def _parsed(self, column: str) -> pl.Series:
        """Return the numbers of a column, null where a cell holds none."""
        cells = self._cells[column]
        if cells.native is not None:
            numbers = cells.numbers
            empty = pl.repeat(None, len(self.rows), dtype=pl.Float64, eager=True)
            return (empty if numbers is None else numbers).rename(column)
        texts = parsed(cells.texts, decimal_comma=self.decimal_comma).rename(column)
        if cells.numbers is None:
            return texts
        return cells.numbers.zip_with(cells.numbers.is_not_null(), texts).rename(column)

    def _narrow(self, column: str, numbers: pl.Series, plain: pl.Series) -> pl.Series:
        """Return numbers as whole numbers where all of them are written so."""
        cells = self._cells[column]
        if cells.numbers is not None:
            whole = numbers.drop_nulls()
            is_whole = bool(((whole == whole.floor()) & (whole.abs() < _EXACT)).all())
            return numbers.cast(pl.Int64) if is_whole else numbers
        if bool(plain.str.contains(WHOLE).all()):
            try:
                return trimmed(cells.texts).cast(pl.Int64).rename(column)
            except pl.exceptions.PolarsError:  # beyond 64 bits: a name, and no number
                return cells.texts.rename(column)
        return numbers

    def _written(self, column: str) -> pl.Series:
        """Return a column's cells with text; cells with numbers are null."""
        cells = self._cells[column]
        if cells.numbers is None:
            return cells.texts
        return cells.texts.set(cells.numbers.is_not_null(), None)

    def _marks_differ(self, column: str) -> bool:
        written = self._written(column)
        if not self.decimal_comma:
            return False
        return bool(has_commas(written).any()) and bool(has_points(written).any())

    def _refuse_mixed_marks(self, column: str) -> None:
        if not self._marks_differ(column):
            return
        written = self._written(column)
        places = [int(marks(written).fill_null(value=False).arg_true()[0])
                  for marks in (has_commas, has_points)]  # fmt: skip
        both = " and ".join(f"{written[at]!r} (row {self.rows[at]})" for at in places)
        msg = f"{self._place(column)}: {both}: a decimal comma and a decimal point; write all alike"
        raise TableError(msg)

    def _refuse_among_numbers(self, column: str, numbers: pl.Series) -> None:
        """Refuse texts in a column that holds numbers for the most part, and no codes."""
        texts = self._cells[column].texts
        commas = _none_of(texts)
        if not self.decimal_comma:
            commas = has_commas(texts).fill_null(value=False)
            rest = parsed(texts, decimal_comma=True)
            if bool(commas.any()) and rest.null_count() == texts.null_count():
                self._refuse(column, commas, lambda at: why_no_number(
                    str(texts[at]), decimal_comma=False))  # fmt: skip
        measured = numbers.drop_nulls()
        is_measured = measured.n_unique() > MOST_CODES or bool((measured != measured.floor()).any())
        if is_measured and 2 * len(measured) > len(texts) - texts.null_count():
            count = len(measured)
            self._refuse(
                column,
                texts.is_not_null() & numbers.is_null(),
                lambda at: (
                    f"{why_no_number(str(texts[at]), decimal_comma=self.decimal_comma)}, "
                    f"but {count} other cells of the column are; correct it or leave it empty"
                ),
            )

    def _refuse(self, column: str, wrong: pl.Series, why: Callable[[int], str]) -> None:
        """Raise TableError for the first wrong cell."""
        places = wrong.fill_null(value=False).arg_true()
        if not len(places):
            return
        at = int(places[0])
        cell = self._cells[column].texts[at]
        more = f" ({len(places)} such cells)" if len(places) > 1 else ""
        msg = f"{self._place(column, at)}: {cell!r} {why(at)}{more}"
        raise TableError(msg)

    def _place(self, column: str, at: int | None = None) -> str:
        row = "" if at is None else f"row {self.rows[at]}, "
        return f"table {self.name!r}, {row}column {column!r}"

    def _first(self, texts: pl.Series) -> dict[str, int]:
        """Return the first row of each text, for messages."""
        frame = pl.DataFrame({"text": texts, "row": self.rows}).drop_nulls()
        return dict(frame.unique("text", keep="first").iter_rows())


def _nameless(header: list[str], columns: list[CellColumn]) -> list[str]:
    """Return a sentence for each column that has cells but no name and is no index."""
    return [
        f"column {place} has no name and is left out"
        for place, (name, cells) in enumerate(zip(header, columns, strict=True), 1)
        if place > 1 and not name and bool((cells.texts.str.strip_chars() != "").any())
    ]


def _none_of(texts: pl.Series) -> pl.Series:
    return pl.Series([False]).new_from_index(0, len(texts))


def _too_long(_: int) -> str:
    return "has more digits than a spreadsheet keeps (15); make the cell a text"


def _header_key(name: str) -> str:
    """Return a key of a column's name that ignores case and blanks.

    >>> _header_key("Slide ID ") == _header_key("slide_id")
    True
    """
    return near_key(re.sub(r"[\s\u00a0]+", "_", clean_name(name)))


def _without_words(cells: CellColumn) -> tuple[CellColumn, dict[str, int]]:
    """Return cells with null for blanks and missing-value words, and the count of each word."""
    if cells.native is not None:
        return cells, {}
    bare = cells.texts.str.strip_chars()
    words = bare.is_in(list(MISSING_WORDS)).fill_null(value=False)
    empty = (bare == "").fill_null(value=False)
    if not bool((words | empty).any()):
        return cells, {}
    counts = bare.filter(words).value_counts().sort(bare.name)
    texts = cells.texts.set(words | empty, None)
    return replace(cells, texts=texts), dict(counts.iter_rows())
