"""Users' tables in every form that people have them; expected values are by hand, csv or pandas."""

import csv
import io
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import polars as pl
import pytest

from featurestore.usertables import (
    TableError,
    UserTable,
    parse_table,
    read_table,
    refuse_near,
    refuse_near_others,
)

ROWS = [
    ["slide_id", "patient_id", "age", "months", "site", "dead"],
    ["0012", "12.10", "61", "1.5", "Zürich", "1"],
    ["12", "12.1", "NA", "10.25", "nan", "0"],
    ["x, y", 'say "so"', "7", "", "a\nb", "1"],
]
TEXTS = {
    "slide_id": ["0012", "12", "x, y"],
    "patient_id": ["12.10", "12.1", 'say "so"'],
    "site": ["Zürich", None, "a\nb"],
}


def table_of(text: str | bytes, name: str = "t.csv") -> UserTable:
    return parse_table(text if isinstance(text, bytes) else text.encode(), name=name)


def as_csv(separator: str = ",", *, end: str = "\n", comma: bool = False) -> str:
    rows = [[cell.replace(".", ",") if comma and at == 3 else cell for at, cell in enumerate(row)]
            for row in ROWS]  # fmt: skip
    stream = io.StringIO(newline="")
    writer = csv.writer if end != "\r" else partial(csv.writer, quoting=csv.QUOTE_ALL)
    writer(stream, delimiter=separator, lineterminator=end).writerows(rows)
    return stream.getvalue()


def as_excel() -> bytes:
    stream = io.BytesIO()
    frame = pd.DataFrame(ROWS[1:], columns=ROWS[0])
    for column in ("age", "months", "dead"):
        frame[column] = pd.to_numeric(frame[column].replace({"NA": None, "": None}))
    frame.to_excel(stream)
    return stream.getvalue()


def as_parquet() -> bytes:
    frame = pd.DataFrame(ROWS[1:], columns=ROWS[0])
    for column in ("age", "months", "dead"):
        frame[column] = pd.to_numeric(frame[column].replace({"NA": None, "": None}))
    frame["site"] = frame["site"].astype("category")
    stream = io.BytesIO()
    frame.to_parquet(stream)
    return stream.getvalue()


FORMS: dict[str, tuple[str, bytes]] = {
    "comma": ("t.csv", as_csv().encode()),
    "CRLF": ("t.csv", as_csv(end="\r\n").encode()),
    "old Mac": ("t.csv", as_csv(end="\r").encode()),
    "BOM": ("t.csv", as_csv().encode("utf-8-sig")),
    "BOM before a quote": ("t.csv", as_csv(end="\r").replace("\r", "\n").encode("utf-8-sig")),
    "semicolon": ("t.csv", as_csv(";").encode()),
    "semicolon, decimal comma": ("t.CSV", as_csv(";", comma=True, end="\r\n").encode("utf-8-sig")),
    "tab in a csv": ("t.csv", as_csv("\t").encode()),
    "tsv": ("t.tsv", as_csv("\t").encode()),
    "txt, decimal comma": ("t.txt", as_csv("\t", comma=True).encode()),
    "sep=": ("t.csv", ("sep=|\r\n" + as_csv("|")).encode()),
    "UTF-16 of Excel": ("t.txt", as_csv("\t").encode("utf-16")),
    "blank last lines": ("t.csv", (as_csv() + "\n  \n,,,,,\n").encode()),
    "no last line end": ("t.csv", as_csv().rstrip("\n").encode()),
    "blank names at the end": ("t.csv", as_csv().replace("dead\n", "dead,\n").encode()),
    "pandas' csv with an index": (
        "t.csv",
        pd.DataFrame(ROWS[1:], columns=ROWS[0]).to_csv().encode(),
    ),
    "xlsx": ("t.xlsx", as_excel()),
    "parquet with a categorical": ("t.parquet", as_parquet()),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_table_reads_alike(form: str) -> None:
    name, content = FORMS[form]
    table = table_of(content, name)
    assert table.columns == tuple(ROWS[0])
    assert table.height == 3
    for column, texts in TEXTS.items():
        assert table.texts(column).to_list() == texts
        assert table.texts(column).dtype == pl.String
    assert table.ids("slide_id").to_list() == TEXTS["slide_id"]
    assert table.numbers("age").to_list() == [61.0, None, 7.0]
    assert table.integers("age").to_list() == [61, None, 7]
    assert table.numbers("months").to_list() == [1.5, 10.25, None]
    assert table.values("months").to_list() == [1.5, 10.25, None]
    assert table.values("dead").to_list() == [1, 0, 1]
    assert table.frame()["slide_id"].to_list() == TEXTS["slide_id"]


def test_what_was_taken_for_no_value_is_said() -> None:
    notes = table_of(as_csv()).notes
    assert notes == (
        "column 'age': 1 cells read 'NA', taken as no value",
        "column 'site': 1 cells read 'nan', taken as no value",
    )


@pytest.mark.parametrize("word", sorted(pd._libs.parsers.STR_NA_VALUES - {""}))
def test_words_of_no_value_are_those_of_pandas(word: str) -> None:
    assert table_of(f"a,b\n{word},1\n").texts("a").to_list() == [None]


def test_columns_without_a_name_are_said_unless_they_are_an_index() -> None:
    table = table_of(",a,,b\n0,1,x,2\n1,3,,4\n")
    assert (table.columns, table.index is not None) == (("a", "b"), True)
    assert table.notes == ("column 3 has no name and is left out",)


def test_one_column_alone() -> None:
    assert table_of("slide_id\na\nb\n").texts("slide_id").to_list() == ["a", "b"]
    assert table_of("v\n1,5\n", "t.tsv").numbers("v").to_list() == [1.5]
    with pytest.raises(TableError, match="row 2: 2 cells, but the header has 1"):
        table_of("v\n1,5\n")


HEADERS = ["Slide ID", " slide_id ", "SLIDE_ID\u00a0", "\ufeffSlide_Id", "slide id"]


@pytest.mark.parametrize("header", HEADERS)
def test_headers_are_met_but_for_case_and_blanks(header: str) -> None:
    table = table_of(f"grade,{header}\n1,a\n")
    assert table.column("slide_id") == header.strip("\ufeff \u00a0")
    assert table.texts("slide_id").to_list() == ["a"]


def test_headers_that_are_near_are_told_apart_by_the_exact_one() -> None:
    table = table_of("Label,label,x\n1,2,3\n")
    assert table.texts("label").to_list() == ["2"]
    with pytest.raises(TableError, match="'Label', 'label'; 'LABEL' may be each of them"):
        table.texts("LABEL")
    with pytest.raises(TableError, match="no column 'lable'; it has Label, label, x; did you mean"):
        table.texts("lable")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1;2", [1.0]),
        ("1,5;2", [1.5]),
        ("-0,25;2", [-0.25]),
        (",5;2", [0.5]),
        ("1.5;2", [1.5]),
        ("1e-3;2", [0.001]),
        (" 7 ;2", [7.0]),
        ("\u22123,5;2", [-3.5]),
        ("+2.;2", [2.0]),
    ],
)
def test_numbers_with_points_and_commas(text: str, expected: list[float]) -> None:
    assert table_of(f"a;b\n{text}\n").numbers("a").to_list() == expected


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ('id,v\na,"1,5"\n', "v", r"row 2, column 'v': '1,5' has a decimal comma, .* write 1\.5"),
        ("id,v\na,1\nb,3 months\n", "V", r"row 3, column 'v': '3 months' is no number"),
        ("id;v\na;1.234,5\n", "v", r"row 2, column 'v': '1\.234,5' has thousands separators"),
        ("id;v\na;1.5\n\nb;2,5\n", "v", r"'2,5' \(row 4\) and '1\.5' \(row 2\): a decimal comma"),
        ("id,v\na,inf\n", "v", "'inf' is no number"),
        ("id,v\na,>90\nb,x\n", "v", r"'>90' is no number \(2 such cells\)"),
        ("id,v\na,#REF!\n", "v", "row 2, column 'v': '#REF!' is a spreadsheet's error"),
    ],
)
def test_cells_that_hold_no_number_are_named(text: str, column: str, message: str) -> None:
    with pytest.raises(TableError, match=r"table 't\.csv', .*" + message):
        table_of(text).numbers(column)


def test_rows_are_counted_as_a_spreadsheet_shows_them() -> None:
    table = table_of('id,v\n"a\nb",1\n\n,\nc,x\n')
    assert table.rows.to_list() == [2, 5]
    with pytest.raises(TableError, match="row 5, column 'v'"):
        table.numbers("v")


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "2", None], [1, 2, None]),
        (["1", "2.0"], [1.0, 2.0]),
        (["01", "2"], ["01", "2"]),
        (["true", "False", None], [True, False, None]),
        (["99999999999999999999", "1"], ["99999999999999999999", "1"]),
        (["a", "1"], ["a", "1"]),
        (["1-2", "3"], ["1-2", "3"]),
        (["0", "1", "2", "x"], ["0", "1", "2", "x"]),
        ([None, None], [None, None]),
    ],
)
def test_columns_are_what_they_look_like(cells: list[Any], expected: list[Any]) -> None:
    text = "k,v\n" + "".join(f"k,{cell or ''}\n" for cell in cells)
    assert table_of(text).values("v").to_list() == expected


def test_a_mistake_among_numbers_makes_no_classes_of_them() -> None:
    text = "k,v\n" + "".join(f"{at},{at}.5\n" for at in range(9)) + "9,unknown\n"
    with pytest.raises(TableError, match=r"row 11, column 'v': 'unknown' is no number, but 9"):
        table_of(text).values("v")
    assert table_of(text).frame()["v"].dtype == pl.String
    with pytest.raises(TableError, match=r"row 2, column 'v': '0,5' has a decimal comma"):
        table_of('k,v\n1,"0,5"\n2,3\n').values("v")
    # a comment of numbers and commas is nobody's measurement
    assert table_of('k,v\n1,"0,5"\n2,x\n').values("v").to_list() == ["0,5", "x"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9223372036854775807", 9223372036854775807),
        ("12.0", 12),
        ("1e3", 1000),
        ("-5", -5),
        ("0012", 12),
    ],
)
def test_whole_numbers_are_exact(text: str, expected: int) -> None:
    assert table_of(f"k,v\na,{text}\n").integers("v").to_list() == [expected]


@pytest.mark.parametrize("text", ["1.5", "1e300", "99999999999999999999"])
def test_what_is_no_whole_number_is_named(text: str) -> None:
    with pytest.raises(TableError, match=r"row 2, column 'v': .* is no whole number"):
        table_of(f"k,v\na,{text}\n").integers("v")


def test_exact_values_lose_nothing() -> None:
    table = table_of("a,b,c\n12.10,1.5,007\n3.0,2.25,8\n")
    exact = [table.exact_values(column).to_list() for column in "abc"]
    assert exact == [["12.10", "3.0"], [1.5, 2.25], ["007", "8"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2,3\n", "row 2: 3 cells, but the header has 2"),
        ("a,b\n1,2\n3\n", "row 3: 1 cell, but the header has 2"),
        ("a,b\n1,2\na,b\n", "row 3 is the header once more"),
        ('a,b\n1,"2\n', "row 2: unexpected end of data; a quote"),
        ("", "is empty; its first row names the columns"),
        ("\n \n", "is empty; its first row names the columns"),
        ("a,b, a\n1,2,3\n", "columns 1 and 3 are both called 'a'"),
        ("id,site\n1,Zürich\n".encode("latin-1"), "row 2, column 'site': byte 0xFC is no UTF-8"),
        ("größe\n1\n".encode("latin-1"), "its header holds bytes that are no UTF-8"),
        (b"a,b\n1,\x00\n", "row 2, column 'b': byte 0x00"),
        (b"PAR1....", r"ends in '\.csv' but its bytes are those of \.parquet; rename it"),
        (b"PK\x03\x04", r"ends in '\.csv' but its bytes are those of \.xlsx; rename it"),
    ],
)
def test_files_that_are_no_table_are_refused(content: str | bytes, message: str) -> None:
    with pytest.raises(TableError, match=r"table 't\.csv'.*" + message):
        table_of(content)


def test_endings_and_places(tmp_path: Path) -> None:
    with fsspec.open("memory://tables/t.csv", "w") as file:
        file.write("a\n1\n")
    assert read_table("memory://tables/t.csv").values("a").to_list() == [1]
    for name in ("t.csv", "t"):
        with pytest.raises(TableError, match=r"there is no table '.*/t(\.csv)?'; give a file that"):
            read_table(tmp_path / name)
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(TableError, match=r"ends in '\.json'; allowed are \.csv, \.tsv, \.txt"):
        read_table(tmp_path / "t.json")
    with pytest.raises(TableError, match=r"can't be read: .*directory"):
        read_table(tmp_path)
    assert parse_table(b"a;b\n1;2\n", name="t", any_ending=True).columns == ("a", "b")


def test_types_that_a_parquet_file_gives_are_kept() -> None:
    frame = pl.DataFrame(
        {
            "id": [101.0, 102.0, None],
            "text": ["1", "2", "NA"],
            "score": [0.5, float("nan"), None],
            "key": [2**62 + 1, 5, None],
            "flag": [True, False, None],
            "day": pl.Series(["2024-02-29", None, None]).str.to_date(),
            "kind": pl.Series(["a", "b", None], dtype=pl.Enum(["a", "b"])),
            "money": pl.Series(["1.50", None, None]).str.to_decimal(scale=2),
        }
    )
    stream = io.BytesIO()
    frame.write_parquet(stream)
    table = table_of(stream.getvalue(), "t.parquet")
    assert table.ids("id").to_list() == ["101", "102", None]
    assert table.values("text").to_list() == ["1", "2", None]
    assert table.numbers("text").to_list() == [1.0, 2.0, None]
    assert table.values("score").to_list() == [0.5, None, None]
    assert table.integers("key").to_list() == [2**62 + 1, 5, None]
    assert table.values("flag").to_list() == [True, False, None]
    assert table.texts("day").to_list() == ["2024-02-29", None, None]
    assert table.values("kind").to_list() == ["a", "b", None]
    assert table.values("money").to_list() == [1.5, None, None]
    with pytest.raises(TableError, match=r"row 1, column 'day': '2024-02-29' is a date and no num"):
        table.numbers("day")
    with pytest.raises(TableError, match=r"row 1, column 'flag': 'true' is no number"):
        table.numbers("flag")


E_ACUTE = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")
NEAR = {
    "case": ("P1", "p1"),
    "blank at the end": ("P1", "P1 "),
    "no-break space": ("P 1", "P\u00a01"),
    "zero-width space": ("P1", "P\u200b1"),
    "Unicode form": E_ACUTE,
    "full width": ("P1", "\uff301"),
    "sharp s": ("Strasse", "Straße"),
}
KINDS = {"case": "case", "blank at the end": "blanks", "no-break space": "blanks",
         "zero-width space": "blanks", "Unicode form": "Unicode form", "full width": "Unicode form",
         "sharp s": "case"}  # fmt: skip


@pytest.mark.parametrize("pair", NEAR)
def test_ids_that_are_near_are_refused_with_the_pair_named(pair: str) -> None:
    one, other = NEAR[pair]
    table = table_of(f"id,v\n{other},1\nx,2\n{one},3\n")
    with pytest.raises(TableError) as caught:
        table.ids("id")
    text = str(caught.value)
    assert "(row 2)" in text
    assert "(row 4)" in text
    assert f"differ by {KINDS[pair]} only" in text
    assert "--distinct-ids" in text
    assert table.ids("id", distinct=True).to_list() == [other, "x", one]
    with pytest.raises(TableError, match=r"slides: .* of the lake differ by"):
        refuse_near_others([one], [other, "y"], "slides", "the lake")
    refuse_near_others([one], [one, other], "slides", "the lake")


def test_ids_that_only_look_near_are_different() -> None:
    ids = ["0012", "12", "12.0", "12.10", "a-b", "a_b", "ab", "é", "e"]
    table = table_of("id\n" + "".join(f"{name}\n" for name in ids))
    assert table.ids("id").to_list() == ids


def test_ids_that_look_like_numbers_stay_as_they_are_written() -> None:
    ids = ["12.10", "12.1", "7", "1e3", "+5", "9999999999999999999"]
    assert table_of("id\n" + "".join(f"{name}\n" for name in ids)).ids("id").to_list() == ids


def test_ids_that_a_spreadsheet_has_spoilt_are_named() -> None:
    with pytest.raises(TableError, match=r"row 3, column 'id': '1\.23E\+15' is a number that a sp"):
        table_of("id\na\n1.23E+15\n").ids("id")


@pytest.mark.parametrize("read", [UserTable.texts, UserTable.numbers, UserTable.values])
def test_a_table_of_no_rows_is_one(read: Callable[[UserTable, str], pl.Series]) -> None:
    table = table_of("slide_id,grade\n")
    assert table.height == 0
    assert read(table, "grade").to_list() == []


def test_many_rows_are_read_in_linear_time() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.random(50_000)
    text = "slide_id,x\n" + "".join(f"s{at},{x!r}\n" for at, x in enumerate(numbers.tolist()))
    table = table_of(text)
    refuse_near(table.texts("slide_id"), "ids")
    assert table.numbers("x").to_list() == numbers.tolist()
    assert table.ids("slide_id")[-1] == "s49999"
