"""Label and split tables of other tools, written in the tools' own forms."""

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

from featurestore.interop import InteropError, read_labels, read_splits


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def rows(frame: pl.DataFrame) -> list[tuple[object, ...]]:
    return sorted(frame.rows(), key=str)


# ---------------------------------------------------------------------- labels


def test_clam_labels(tmp_path: Path) -> None:
    text = "case_id,slide_id,label\n007,slide_0,tumor_tissue\n007,slide_1,NA\n"
    labels = read_labels(write(tmp_path / "labels.csv", text))
    assert labels.columns == ["slide_id", "patient_id", "label"]
    assert labels.rows() == [("slide_0", "007", "tumor_tissue"), ("slide_1", "007", None)]


def test_patho_bench_labels_keep_survival_columns_and_drop_folds(tmp_path: Path) -> None:
    text = (
        "case_id\tslide_id\tOS\tOS_event\tOS_days\tfold_0\tfold_1\n1\ta\t2\t1\t100.5\ttrain\ttest\n"
    )
    labels = read_labels(write(tmp_path / "k=all.tsv", text))
    assert labels.columns == ["slide_id", "patient_id", "OS", "OS_event", "OS_days"]
    assert labels.rows() == [("a", "1", 2, 1, 100.5)]


@pytest.mark.parametrize("ending", ["csv", "xlsx"])
def test_stamp_tables(tmp_path: Path, ending: str) -> None:
    clini = pl.DataFrame({"PATIENT": ["7", "8"], "isMSIH": ["MSIH", None], "time": [12.5, 3.0]})
    slides = pl.DataFrame(
        {"PATIENT": ["7", "7", "9"], "FILENAME": ["site/a.h5", "site/b.b.h5", "c.h5"]}
    )
    paths = [tmp_path / f"{name}.{ending}" for name in ("clini", "slide")]
    for frame, path in zip((clini, slides), paths, strict=True):
        write_frame(frame, path)
    assert read_labels(paths[0]).columns == ["patient_id", "isMSIH", "time"]
    assert read_labels(paths[0])["patient_id"].to_list() == ["7", "8"]
    assert read_labels(paths[0])["isMSIH"].to_list() == ["MSIH", None]
    assert read_labels(paths[1]).columns == ["slide_id", "patient_id"]
    labels = read_labels(paths[0], slides=paths[1])
    assert labels.columns == ["slide_id", "patient_id", "isMSIH", "time"]
    assert rows(labels) == [("a", "7", "MSIH", 12.5), ("b.b", "7", "MSIH", 12.5)]


def write_frame(frame: pl.DataFrame, path: Path) -> None:
    if path.suffix == ".csv":
        frame.write_csv(path)
    else:
        write_xlsx(frame, path)


def write_xlsx(frame: pl.DataFrame, path: Path) -> None:
    """Write a workbook of one sheet: numbers as numbers, texts in place, nulls left out."""
    import zipfile

    def cell(value: object, column: int, row: int) -> str:
        place = f"{chr(65 + column)}{row}"
        if value is None:
            return ""
        if isinstance(value, float):
            return f'<c r="{place}"><v>{value}</v></c>'
        return f'<c r="{place}" t="inlineStr"><is><t>{value}</t></is></c>'

    table = [frame.columns, *frame.rows()]
    body = "".join(
        f'<row r="{r}">{"".join(cell(v, c, r) for c, v in enumerate(line))}</row>'
        for r, line in enumerate(table, 1)
    )
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    kinds = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types">'
        '<Default Extension="rels" ContentType='
        '"application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{kinds}.sheet.main+xml"/>'
        f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{kinds}.worksheet+xml"/>'
        "</Types>",
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" '
        f'Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets>'
        '<sheet name="Sheet1" sheetId="1" r:id="r1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships">'
        f'<Relationship Id="r1" Type="{office}/worksheet" Target="worksheets/sheet1.xml"/>'
        "</Relationships>",
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{body}</sheetData>'
        "</worksheet>",
    }
    with zipfile.ZipFile(path, "w") as file:
        for name, text in parts.items():
            file.writestr(name, f'<?xml version="1.0" encoding="UTF-8"?>{text}')


def test_own_form_and_pandas_index(tmp_path: Path) -> None:
    frame = pd.DataFrame({"slide_id": ["a"], "patient_id": ["01"], "grade": [2]})
    frame.to_csv(tmp_path / "l.csv")
    assert read_labels(tmp_path / "l.csv").rows() == [("a", "01", 2)]
    frame.to_parquet(tmp_path / "l.parquet")
    assert read_labels(tmp_path / "l.parquet").rows() == [("a", "01", 2)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "name,label\na,b\n", r"has columns \['name', 'label'\]; known forms are: CLAM"),
        ("l.csv", "case_id,patient_id\na,b\n", "each of which may hold the patient_id"),
        ("l.json", "{}", r"ends in '\.json'; allowed are \.csv, \.tsv, \.txt, \.xlsx"),
        ("l.xlsx", "no workbook", "can't be read as xlsx"),
        ("l.csv", "", "is empty; its first row names the columns"),
    ],
)
def test_labels_of_no_known_form(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(InteropError, match=message):
        read_labels(write(tmp_path / name, text))
    with pytest.raises(InteropError, match=r"there is no table .*nowhere\.csv"):
        read_labels(tmp_path / "nowhere.csv")


# ---------------------------------------------------------------------- splits


def test_clam_splits_are_ragged(tmp_path: Path) -> None:
    # As CLAM's save_splits makes it: three lists side by side, padded with NaN.
    parts = [pd.Series(["a", "b", "c"]), pd.Series(["d"]), pd.Series(["e", "f"])]
    frame = pd.concat(parts, ignore_index=True, axis=1)
    frame.columns = pd.Index(["train", "val", "test"])
    frame.to_csv(tmp_path / "splits_3.csv")
    splits = read_splits(tmp_path / "splits_3.csv")
    assert splits.columns == ["fold", "slide_id", "part"]
    assert rows(splits) == [
        *[(3, name, "train") for name in "abc"],
        (3, "d", "val"),
        *[(3, name, "test") for name in "ef"],
    ]


def test_clam_numbers_that_pandas_made_floats(tmp_path: Path) -> None:
    parts = [pd.Series([101, 102]), pd.Series([103]), pd.Series([104])]
    frame = pd.concat(parts, ignore_index=True, axis=1)
    frame.columns = pd.Index(["train", "val", "test"])
    frame.to_csv(tmp_path / "splits_0.csv")
    assert "103.0" in (tmp_path / "splits_0.csv").read_text()
    assert sorted(read_splits(tmp_path / "splits_0.csv")["slide_id"]) == [
        "101",
        "102",
        "103",
        "104",
    ]


def test_clam_folder_of_folds(tmp_path: Path) -> None:
    for fold in (0, 1, 10):
        write(tmp_path / f"splits_{fold}.csv", f",train,val,test\n0,a{fold},b{fold},c{fold}\n")
        names = [f"{name}{fold}" for name in "abc"]
        flags = pd.DataFrame(np.eye(3, dtype=bool), index=names, columns=["train", "val", "test"])
        flags.to_csv(tmp_path / f"splits_{fold}_bool.csv")
        write(tmp_path / f"splits_{fold}_descriptor.csv", ",train,val,test\ntumor,1,1,1\n")
    splits = read_splits(tmp_path)
    assert splits["fold"].to_list() == [0, 0, 0, 1, 1, 1, 10, 10, 10]
    for fold in (0, 10):
        by_bool = read_splits(tmp_path / f"splits_{fold}_bool.csv")
        assert rows(by_bool) == rows(splits.filter(pl.col("fold") == fold))
    with pytest.raises(InteropError, match="known forms are: CLAM's splits"):
        read_splits(tmp_path / "splits_0_descriptor.csv")


def test_stamp_splits(tmp_path: Path) -> None:
    text = '{"splits": [{"train_patients": ["p1", "p2"], "test_patients": ["p3"]}, '
    text += '{"train_patients": ["p3"], "test_patients": ["p1"]}]}'
    splits = read_splits(write(tmp_path / "splits.json", text))
    assert rows(splits) == [
        (0, "p1", "train"),
        (0, "p2", "train"),
        (0, "p3", "test"),
        (1, "p1", "test"),
        (1, "p3", "train"),
    ]
    with pytest.raises(InteropError, match=r"is not STAMP's splits\.json"):
        read_splits(write(tmp_path / "other.json", '{"folds": []}'))


PATHO_BENCH = """case_id\tslide_id\tgrade\tfold_0\tfold_1\tfold_10
c1\ta\t1\ttrain\ttest\ttrain
c1\tb\t1\ttrain\ttest\ttrain
c2\tc\t2\ttest\ttrain\t
c3\td\t2\tval\ttrain\ttest
"""


def test_patho_bench_splits(tmp_path: Path) -> None:
    splits = read_splits(write(tmp_path / "k=all.tsv", PATHO_BENCH))
    assert splits.columns == ["fold", "slide_id", "patient_id", "part"]
    assert splits.height == 11
    assert splits.filter(pl.col("slide_id") == "c").rows() == [
        (0, "c", "c2", "test"),
        (1, "c", "c2", "train"),
    ]
    assert set(splits.filter(pl.col("patient_id") == "c1").select("fold", "part").rows()) == {
        (0, "train"),
        (1, "test"),
        (10, "train"),
    }


def test_patho_bench_rows_that_disagree(tmp_path: Path) -> None:
    torn = PATHO_BENCH.replace("c1\tb\t1\ttrain", "c1\tb\t1\ttest")
    path = write(tmp_path / "k=all.tsv", torn)
    with pytest.raises(InteropError, match="rows of one case_id disagree about fold_0: c1"):
        read_splits(path)
    # Where the task's samples are slides, its own tool takes the same file.
    write(tmp_path / "config.yaml", "task_col: grade\nsample_col: slide_id\nextra_cols: []\n")
    assert read_splits(path).height == 11
    with pytest.raises(InteropError, match=r"has the parts \['dev'\]; allowed are train, val"):
        read_splits(write(tmp_path / "dev" / "k=all.tsv", PATHO_BENCH.replace("val", "dev")))


def test_what_is_in_two_parts_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "splits_1.csv", ",train,val,test\n0,a,b,a\n1,c,,d\n")
    with pytest.raises(InteropError, match="in two parts of fold 1: a; each must be in one part"):
        read_splits(path)


def test_split_of_no_known_form(tmp_path: Path) -> None:
    with pytest.raises(InteropError, match=r"has no splits_<k>\.csv; known forms are"):
        read_splits(tmp_path)
    with pytest.raises(InteropError, match=r"has columns \['a', 'b'\]; known forms are"):
        read_splits(write(tmp_path / "s.csv", "a,b\n1,2\n"))
