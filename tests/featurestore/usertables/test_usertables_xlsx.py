"""Workbooks: the displayed text and the stored value of cells, against openpyxl and by hand."""

import datetime as dt
import io
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from featurestore.usertables import TableError, UserTable, parse_table
from featurestore.usertables.read_table import read_table
from tests.featurestore.interop.test_interop_tables import write_xlsx


def workbook(rows: list[list[Any]], formats: dict[str, str] | None = None) -> bytes:
    """Return a workbook of these rows; `formats` are number formats by cell."""
    book = openpyxl.Workbook()
    sheet = book.active
    for row in rows:
        sheet.append(row)
    for place, code in (formats or {}).items():
        sheet[place].number_format = code
    stream = io.BytesIO()
    book.save(stream)
    return stream.getvalue()


def table_of(rows: list[list[Any]], formats: dict[str, str] | None = None) -> UserTable:
    return parse_table(workbook(rows, formats), name="t.xlsx")


@pytest.mark.parametrize(
    ("value", "code", "text"),
    [
        (12, "General", "12"),
        (12.0, "General", "12"),
        (12, "0000", "0012"),
        (12.1, "0.00", "12.10"),
        (7, '"P-"000', "P-007"),
        (7, "\\S0", "S7"),
        (1234567, "#,##0", "1234567"),
        (123456789012345, "General", "123456789012345"),
        (0.1 + 0.2, "General", "0.3"),
        (0.5, "0%", "50%"),
        (-3, "0;(0)", "(3)"),
        (2.5, "0.##", "2.5"),
        (1.5, "# ?/?", "1.5"),
        ("0012", "@", "0012"),
        (" a ", "General", " a "),
        (True, "General", "true"),
    ],
)
def test_texts_are_what_a_cell_shows(value: object, code: str, text: str) -> None:
    table = table_of([["id", "n"], [value, 1]], {"A2": code})
    assert table.texts("id").to_list() == [text]


def test_numbers_are_what_a_cell_holds() -> None:
    table = table_of([["v"], [3.14159], ["1,5"], [" 2.5 "], [None], ["NA"]], {"A2": "0.0"})
    assert table.texts("v").to_list() == ["3.1", "1,5", " 2.5 ", None]
    with pytest.raises(TableError, match=r"'1,5' \(row 3\) and ' 2.5 ' \(row 4\): a decimal comma"):
        table.numbers("v")
    table = table_of([["v"], [3.14159], ["1,5"], [None], ["NA"]], {"A2": "0.0"})
    assert table.numbers("v").to_list() == [3.14159, 1.5, None]


def test_dates_are_days_and_never_ids_or_numbers() -> None:
    day, moment = dt.date(2024, 2, 29), dt.datetime(2024, 2, 29, 13, 45)
    table = table_of([["id", "seen"], ["a", day], ["b", moment], [dt.date(2024, 1, 2), day]])
    assert table.texts("seen").to_list() == ["2024-02-29", "2024-02-29 13:45:00", "2024-02-29"]
    assert table.values("seen").to_list() == table.texts("seen").to_list()
    with pytest.raises(TableError, match=r"row 4, column 'id': '2024-01-02' is a date where an id"):
        table.ids("id")
    with pytest.raises(TableError, match=r"row 2, column 'seen': '2024-02-29' is a date"):
        table.numbers("seen")


def test_days_since_1904() -> None:
    book = openpyxl.Workbook()
    book.epoch = openpyxl.utils.datetime.CALENDAR_MAC_1904
    book.active.append(["day"])
    book.active.append([dt.date(2024, 2, 29)])
    stream = io.BytesIO()
    book.save(stream)
    table = parse_table(stream.getvalue(), name="t.xlsx")
    assert table.texts("day").to_list() == ["2024-02-29"]


def test_a_sheet_with_gaps_reads_as_openpyxl_reads_it(tmp_path: Path) -> None:
    none: list[Any] = [None] * 4
    header: list[Any] = ["Slide ID ", None, "grade", "site"]
    rows = [
        none,
        header,
        ["0012", None, 3, "A"],
        none,
        [12, None, None, "b&<"],
        ["x", None, 2, "b_c"],
    ]
    path = tmp_path / "t.xlsx"
    path.write_bytes(workbook(rows))
    table = read_table(path)
    assert table.columns == ("Slide ID", "grade", "site")
    assert table.rows.to_list() == [3, 5, 6]
    sheet = openpyxl.load_workbook(path).active
    for column, letter in (("Slide ID", "A"), ("grade", "C"), ("site", "D")):
        cells = [sheet[f"{letter}{row}"].value for row in table.rows]
        texts = [None if cell is None else str(cell) for cell in cells]
        assert table.texts(column).to_list() == texts
    assert table.integers("grade").to_list() == [3, None, 2]


SHARED = (
    '<sst xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><si><t>slide_id</t></si>'
    "<si><t>name</t></si><si><t xml:space='preserve'>a </t></si><si><r><t>to</t></r><r><rPr/><t>"
    "kyo_x000D_</t></r><rPh sb='0' eb='1'><t>no</t></rPh></si></sst>"
)
"""As Excel writes texts: apart from the sheet, in runs, with how they are pronounced."""


def test_shared_texts_in_cells_without_places() -> None:
    rows = '<row><c t="s"><v>0</v></c><c t="s"><v>1</v></c></row>'
    rows += '<row><c t="s"><v>2</v></c><c t="s"><v>3</v></c></row>'
    parts = {"xl/sharedStrings.xml": SHARED}
    with zipfile.ZipFile(io.BytesIO(workbook([["x"]]))) as old:
        parts |= {name: old.read(name).decode() for name in old.namelist()}
    sheet = parts["xl/worksheets/sheet1.xml"]
    head, tail = sheet.split("<sheetData>")[0], sheet.split("</sheetData>")[1]
    parts["xl/worksheets/sheet1.xml"] = f"{head}<sheetData>{rows}</sheetData>{tail}"
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/sharedStrings"
    part = f'<Relationship Type="{kind}" Target="sharedStrings.xml" Id="r9"/></Relationships>'
    links = "xl/_rels/workbook.xml.rels"
    parts[links] = parts[links].replace("</Relationships>", part)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, text in parts.items():
            file.writestr(name, text)
    table = parse_table(stream.getvalue(), name="t.xlsx")
    assert table.texts("slide_id").to_list() == ["a "]
    assert table.texts("name").to_list() == ["tokyo\r"]


def test_the_first_visible_sheet_is_read_and_it_is_said() -> None:
    book = openpyxl.Workbook()
    book.active.title = "notes"
    book.active.sheet_state = "hidden"
    for name in ("labels", "more"):
        book.create_sheet(name).append([name])
        book[name].append([name])
    stream = io.BytesIO()
    book.save(stream)
    table = parse_table(stream.getvalue(), name="t.xlsx")
    assert table.columns == ("labels",)
    assert table.notes == ("t.xlsx: sheet 'labels' is read, the first of 2",)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [["Table 1"], ["slide_id", "grade"]],
            "row 2: a cell in column 2, but the header",
        ),
        ([["a", "b"], [1, "=1+1"]], "row 2, column 2: a formula without its value"),
        ([["a", "a"], [1, 2]], "columns 1 and 2 are both called 'a'"),
        ([], "its sheet 'Sheet' is empty"),
    ],
)
def test_sheets_that_are_no_table_are_refused(rows: list[list[Any]], message: str) -> None:
    with pytest.raises(TableError, match=message):
        table_of(rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "has a password or is an old .xls"),
        (b"PK\x03\x04 cut short", "can't be read as xlsx"),
        (b"", "can't be read as xlsx"),
    ],
)
def test_files_that_are_no_workbook_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(TableError, match=message):
        parse_table(content, name="t.xlsx")


def test_faults_of_formulas_are_no_classes() -> None:
    table = table_of([["id", "grade"], ["a", "#DIV/0!"], ["b", "#N/A"]])
    assert table.frame()["grade"].to_list() == ["#DIV/0!", None]
    for read in (table.texts, table.values, table.numbers):
        with pytest.raises(TableError, match=r"row 2, column 'grade': '#DIV/0!' is a"):
            read("grade")


def test_numbers_of_more_digits_than_a_spreadsheet_keeps_are_no_keys() -> None:
    table = table_of([["tile_id", "x"], [1100585369601, 1], [1234567890123456789, 2]])
    for read in (table.integers, table.ids):
        with pytest.raises(TableError, match=r"row 3, column 'tile_id'.*more digits than a spread"):
            read("tile_id")
    assert table.integers("x").to_list() == [1, 2]


def test_a_workbook_of_bare_xml(tmp_path: Path) -> None:
    import polars as pl

    write_xlsx(pl.DataFrame({"a": ["x", None], "b": [1.0, 2.5]}), tmp_path / "t.xlsx")
    assert read_table(tmp_path / "t.xlsx").frame().rows() == [("x", 1.0), (None, 2.5)]
