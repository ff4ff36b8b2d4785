"""Split files of other tools and of our own runs, recognised by content; validation from train."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import fsspec
import pandas as pd
import polars as pl
import pytest

from downstream.cohorts.cohort import Cohort
from downstream.splits.folds import Split, nested_folds, with_validation
from downstream.splits.site_folds import leave_site_out
from downstream.splits.split import LeakageError, SplitError
from downstream.splits.split_files import read_splits
from downstream.splits.split_tables import FoldTable, to_table

COHORT = Cohort(
    patients=pl.DataFrame(
        {"patient_id": ["A", "B", "C", "D"], "slide_ids": [["a1", "a2"], ["b1"], ["c1"], ["d1"]]}
    ),
    missing=[],
    surplus=[],
)
IDS = [f"p{i:02d}" for i in range(40)]
LABEL = {patient: ("a", "b", "b", "b")[i % 4] for i, patient in enumerate(IDS)}


def sides(table: FoldTable) -> list[tuple[str, str, str]]:
    return [("".join(s.train), "".join(s.validation), "".join(s.test)) for s in table.splits]


def clam(folder: Path, fold: int, train: list[str], val: list[str], test: list[str]) -> None:
    """Write CLAM's splits as save_splits does: three lists side by side, and an index."""
    parts = [pd.Series(part) for part in (train, val, test)]
    frame = pd.concat(parts, ignore_index=True, axis=1)
    frame.columns = pd.Index(["train", "val", "test"])
    frame.to_csv(folder / f"splits_{fold}.csv")
    flags = {n: [n in part for part in (train, val, test)] for n in (*train, *val, *test)}
    table = pd.DataFrame.from_dict(flags, orient="index", columns=["train", "val", "test"])
    table.to_csv(folder / f"splits_{fold}_bool.csv")
    (folder / f"splits_{fold}_descriptor.csv").write_text(",train,val,test\ntumor,1,1,1\n")


def test_clams_folder(tmp_path: Path) -> None:
    for fold in range(11):
        clam(tmp_path, fold, ["a1", "a2", "b1"], ["c1"], ["d1", "gone"])
    clam(tmp_path, 10, ["c1", "d1"], ["a2", "a1"], ["b1"])
    table = read_splits(tmp_path, COHORT)
    assert [split.fold for split in table.splits] == list(range(11))
    assert sides(table) == [("AB", "C", "D")] * 10 + [("CD", "A", "B")]
    assert (table.missing, table.surplus) == (("gone",), ())
    assert table.notes == ("splits are read as CLAM's, 11 of them",)
    for name in ("splits_10.csv", "splits_10_bool.csv"):
        one = read_splits(tmp_path / name, COHORT)
        assert (sides(one), one.splits[0].fold) == ([("CD", "A", "B")], 10)


def test_clam_numbers_that_pandas_made_floats(tmp_path: Path) -> None:
    patients = pl.DataFrame(
        {"patient_id": list("ABCD"), "slide_ids": [["101"], ["102"], ["103"], ["104"]]}
    )
    parts = [pd.Series([101, 102]), pd.Series([103]), pd.Series([104])]
    frame = pd.concat(parts, ignore_index=True, axis=1)
    frame.columns = pd.Index(["train", "val", "test"])
    frame.to_csv(tmp_path / "splits_0.csv")
    assert "103.0" in (tmp_path / "splits_0.csv").read_text()
    table = read_splits(
        tmp_path / "splits_0.csv", Cohort(patients=patients, missing=[], surplus=[])
    )
    assert sides(table) == [("AB", "C", "D")]


PATHO_BENCH = """case_id\tslide_id\tgrade\tfold_0\tfold_1
A\ta1.svs\t1\ttrain\ttest
A\tnew.svs\t1\ttrain\ttest
B\tb1.svs\t1\ttest\ttrain
C\tc1.svs\t2\tval\ttrain
Z\tz1.svs\t2\ttrain\t
"""


@pytest.mark.parametrize("separator", ["\t", ","])
def test_patho_benchs_table_by_content_alone(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "table.txt"
    path.write_text(PATHO_BENCH.replace("\t", separator))
    table = read_splits(path, COHORT)
    assert sides(table) == [("A", "C", "B"), ("BC", "", "A")]
    assert (table.missing, table.surplus) == (("Z",), ("D",))  # a new slide of A is A's
    assert table.notes[0] == "splits are read as Patho-Bench's, 2 of them"
    assert "3 slides are matched without" in table.notes[1]


def test_stamps_splits_in_a_folder_or_memory(tmp_path: Path) -> None:
    text = json.dumps({"splits": [{"train_patients": ["A", "B", "Z"], "test_patients": ["C"]}]})
    (tmp_path / "splits.json").write_text(text)
    with fsspec.open("memory://study/any-name", "w") as file:
        file.write(text)
    for path in (tmp_path, tmp_path / "splits.json", "memory://study/any-name"):
        table = read_splits(path, COHORT)
        assert sides(table) == [("AB", "", "C")]
        assert (table.missing, table.surplus) == (("Z",), ("D",))


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_splits_of_a_run_come_back(tmp_path: Path, ending: str) -> None:
    labels = list(LABEL.values())
    splits = nested_folds(IDS, labels, folds=3, inner=2, repeats=2, seed=0)
    table = to_table(splits)
    path = tmp_path / f"splits.{ending}"
    table.write_parquet(path) if ending == "parquet" else table.write_csv(path)
    patients = pl.DataFrame({"patient_id": IDS, "slide_ids": [[p] for p in IDS]})
    read_back = read_splits(tmp_path, Cohort(patients=patients, missing=[], surplus=[]))
    assert list(read_back.splits) == splits
    less = Cohort(patients=patients.filter(pl.col("patient_id") != "p07"), missing=[], surplus=[])
    smaller = read_splits(path, less)
    assert smaller.missing == ("p07",)
    named = {p for s in smaller.splits for p in (*s.train, *s.validation, *s.test)}
    assert named == set(IDS) - {"p07"}
    with pytest.raises(SplitError, match=r"splits\.\w+': none of its patients is in the cohort"):
        read_splits(path, COHORT)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (PATHO_BENCH.replace("new.svs\t1\ttrain", "a2\t1\ttest"), LeakageError, "fold 0 .* A; put"),
        (PATHO_BENCH.replace("val", "dev"), SplitError, r"fold_0 of c1.svs is 'dev'; allowed are"),
        ("a,b\n1,2\n", SplitError, r"has columns \['a', 'b'\]; allowed are CLAM's folder"),
        ("", SplitError, "cannot be read .*; allowed are CLAM's folder"),
        ('{"folds": []}', SplitError, r"no splits\.json of STAMP"),
        ("PAR1 but no more", SplitError, "cannot be read .*; allowed are"),
        (",train,val,test\n0,x,,y\n", SplitError, "train of fold 0: 0 ids"),
    ],
)
def test_errors_name_the_file(
    tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(text)
    with pytest.raises(error, match=r"splits '.*mine\.txt': .*" + message):
        read_splits(path, COHORT)


def test_folders_that_say_nothing_or_too_much_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match="the folder holds none of the known files"):
        read_splits(tmp_path, COHORT)
    with pytest.raises(SplitError, match=r"nowhere\.csv': there is no such file; allowed are"):
        read_splits(tmp_path / "nowhere.csv", COHORT)
    clam(tmp_path, 0, ["a1"], [], ["b1"])
    (tmp_path / "splits.json").write_text("{}")
    with pytest.raises(
        SplitError, match=r"holds \['splits\.json', 'splits_0_bool\.csv'\]; name one"
    ):
        read_splits(tmp_path, COHORT)


def test_splits_in_other_forms_and_with_other_capitals(tmp_path: Path) -> None:
    path = tmp_path / "k=all.csv"
    rows = PATHO_BENCH.replace("\t", ";").replace("case_id", "Case_ID ").splitlines()
    path.write_bytes(("\r\n".join(rows) + "\r\n\r\n").encode("utf-8-sig"))
    assert sides(read_splits(path, COHORT)) == [("A", "C", "B"), ("BC", "", "A")]
    frame = pd.DataFrame({"case_id": list("ABC"), "fold_0": ["train", "val", "test"]})
    frame.to_excel(tmp_path / "k.xlsx")
    assert sides(read_splits(tmp_path / "k.xlsx", COHORT)) == [("A", "B", "C")]
    path.write_text("case_id;fold_0\nA;train\nB;train;\nC;test;x\n")
    with pytest.raises(SplitError, match="row 4: 3 cells, but the header has 2"):
        read_splits(path, COHORT)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        (",train,val,test\n0,A,,D\n1,B1,,\n", "B1"),
        (",train,val,test\n0,A,,D\n1,,,c1 \n", "c1 "),
        ("case_id,fold_0\nA,train\nb,train\nC,test\n", "b"),
        ('{"splits": [{"train_patients": ["A", "b"], "test_patients": ["C"]}]}', "b"),
        ("repeat,fold,inner,part,patient_id\n0,0,0,train,A\n0,0,0,test,D\n0,0,0,test,b\n", "b"),
    ],
)  # fmt: skip
def test_near_ids_in_splits_are_refused(tmp_path: Path, text: str, near: str) -> None:
    path = tmp_path / "splits.txt"
    path.write_text(text)
    with pytest.raises(SplitError, match=f"splits: '{near}' and .* of the cohort differ by "):
        read_splits(path, COHORT)
    assert read_splits(path, replace(COHORT, distinct_ids=True)).missing == (near,)


# ---------------------------------------------------------------------- validation from train


def test_a_validation_part_is_taken_from_train_alone() -> None:
    split = Split(train=tuple(IDS[:32]), validation=(), test=tuple(IDS[32:]), fold=3)
    new_split = with_validation(split, LABEL, seed=0)
    assert (new_split.test, new_split.fold) == (split.test, 3)
    assert sorted(new_split.train + new_split.validation) == sorted(split.train)
    assert Counter(LABEL[p] for p in new_split.validation) == {"a": 2, "b": 6}
    backwards = dict(reversed(LABEL.items()))
    assert with_validation(split, backwards, seed=0) == new_split
    assert with_validation(split, LABEL, seed=1) != new_split
    tenth = with_validation(split, LABEL, seed=0, share=0.01)
    assert Counter(LABEL[p] for p in tenth.validation) == {"a": 1, "b": 1}
    most = with_validation(split, LABEL, seed=0, share=0.99)
    assert Counter(LABEL[p] for p in most.train) == {"a": 1, "b": 1}


def test_sites_stay_apart_with_a_validation_part() -> None:
    sites = [f"s{i % 3}" for i in range(len(IDS))]
    whole = leave_site_out(IDS, list(LABEL.values()), sites, inner=1, seed=0)[0]
    joined = Split(
        train=whole.train + whole.validation, validation=(), test=whole.test, sites=whole.sites
    )
    new_split = with_validation(joined, LABEL, seed=0)
    assert new_split.sites == whole.sites
    assert {whole.sites[p] for p in new_split.validation} == {"s1", "s2"}


def test_a_validation_part_that_cannot_be_taken_is_refused() -> None:
    split = Split(train=("p00", "p01", "p02"), validation=(), test=("p03",))
    with pytest.raises(SplitError, match="class 'a' has one training patient in fold 0"):
        with_validation(split, LABEL, seed=0)
    for bad in (0.0, 1.0):
        with pytest.raises(SplitError, match="a share between 0 and 1"):
            with_validation(split, LABEL, seed=0, share=bad)
    with pytest.raises(SplitError, match="1 validation patients"):
        with_validation(Split(train=("p01",), validation=("p02",), test=("p03",)), LABEL, seed=0)
