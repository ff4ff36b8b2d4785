"""Labels meet slides: what is joined, what is listed, what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from downstream import CohortError, patient_table, read_labels
from downstream.cohort import keep_slides
from downstream.outcomes import class_labels, survival_labels


def lake_slides(rows: list[tuple[str, str | None, str]] | None = None) -> pl.LazyFrame:
    rows = rows or [
        ("s1", "p1", "ready"),
        ("s2", "p1", "ready"),
        ("s3", "p2", "ready"),
        ("s4", "p3", "failed"),
        ("s5", None, "ready"),
    ]
    schema = {"slide_id": pl.String, "patient_id": pl.String, "state": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row").lazy()


def labels(**columns: Any) -> pl.DataFrame:  # noqa: ANN401
    return pl.DataFrame(columns)


def test_slide_labels_take_the_patient_from_the_lake() -> None:
    table = labels(slide_id=["s3", "s2", "s1", "s9", "s4"], tumour=[0, 1, 1, 0, 1])
    cohort = patient_table(lake_slides(), table, ["tumour"])
    assert cohort.patients.rows() == [("p1", ["s1", "s2"], 1), ("p2", ["s3"], 0)]
    assert cohort.missing == ["s4", "s9"]
    assert cohort.surplus == ["s5"]
    assert cohort.slide_ids == ["s1", "s2", "s3"]


def test_the_patient_of_the_labels_goes_before_that_of_the_lake() -> None:
    table = labels(slide_id=["s1", "s2", "s5"], patient_id=["x", None, "y"], tumour=[0, 1, 1])
    cohort = patient_table(lake_slides(), table, ["tumour"])
    assert cohort.patients.rows() == [("p1", ["s2"], 1), ("x", ["s1"], 0), ("y", ["s5"], 1)]


def test_patient_labels_bring_all_slides_of_the_patient() -> None:
    table = labels(patient_id=["p1", "p2", "p3"], time=[1.0, 2.0, 3.0], event=[1, 0, 1])
    cohort = patient_table(lake_slides(), table, ["time", "event"])
    assert cohort.patients.rows() == [("p1", ["s1", "s2"], 1.0, 1), ("p2", ["s3"], 2.0, 0)]
    assert cohort.missing == ["p3"]
    assert cohort.surplus == ["s5"]


def test_a_null_or_nan_label_is_no_label() -> None:
    table = labels(slide_id=["s1", "s2", "s3"], score=[1.0, None, float("nan")])
    cohort = patient_table(lake_slides(), table, ["score"])
    assert cohort.patients.rows() == [("p1", ["s1"], 1.0)]
    assert cohort.surplus == ["s2", "s3", "s5"]


def test_slides_without_tiles_are_listed_as_missing() -> None:
    table = labels(slide_id=["s1", "s2", "s3"], tumour=[1, 1, 0])
    cohort = keep_slides(patient_table(lake_slides(), table, ["tumour"]), {"s1", "s5"})
    assert cohort.patients.rows() == [("p1", ["s1"], 1)]
    assert cohort.missing == ["s2", "s3"]
    with pytest.raises(CohortError, match="no labelled slide has a tile: s1"):
        keep_slides(cohort, set())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (labels(slide_id=["s1"], tumor=[1]), "no column 'tumour'.*did you mean 'tumor'"),
        (labels(slide_id=["s1", None], tumour=[1, 0]), "1 labelled rows have no slide_id"),
        (labels(slide_id=["s1", "s2"], tumour=[1, 0]), r"conflicting values.*p1: \[0, 1\]"),
        (labels(slide_id=["s5"], tumour=[1]), "1 labelled slides have no patient.*s5"),
        (labels(slide_id=["s1.svs"], tumour=[1]), "labels have s1.svs; the lake has s1, s2"),
        (
            labels(slide_id=["s1", "s1"], patient_id=["a", "b"], tumour=[1, 1]),
            "1 slides belong to more than one patient: s1",
        ),
    ],
)
def test_contradictions_are_refused(table: pl.DataFrame, message: str) -> None:
    with pytest.raises(CohortError, match=message):
        patient_table(lake_slides(), table, ["tumour"])


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_ids_stay_text(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"labels.{suffix}"
    if suffix == "csv":
        path.write_text("slide_id,grade\n007,1\n008,2\n")
    else:
        labels(slide_id=["007", "008"], grade=[1, 2]).write_parquet(path)
    assert read_labels(path).rows() == [("007", 1), ("008", 2)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.xlsx", "", r"end in '.xlsx'; allowed are \.csv"),
        ("labels.csv", "id,grade\na,1\n", "one must be slide_id or patient_id"),
        ("labels.csv", "", "cannot be read as csv"),
        ("labels.parquet", "no parquet", "cannot be read as parquet"),
    ],
)
def test_unreadable_labels_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(CohortError, match=message):
        read_labels(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"no label file at .*nothing\.csv"):
        read_labels(tmp_path / "nothing.csv")


@pytest.mark.parametrize(
    ("values", "classes", "expected"),
    [
        ([10, 9, 10], ["9", "10"], [1, 0, 1]),
        (["tumour", "normal"], ["normal", "tumour"], [1, 0]),
        ([True, False], ["False", "True"], [1, 0]),
        (["c", "a", "b"], ["a", "b", "c"], [2, 0, 1]),
    ],
)
def test_classes_are_in_order(
    values: list[object], classes: list[str], expected: list[int]
) -> None:
    found, index = class_labels(pl.DataFrame({"y": values}), "y")
    assert (found, index.tolist()) == (classes, expected)


def test_one_class_is_refused() -> None:
    with pytest.raises(CohortError, match="'y' is 1 for every patient"):
        class_labels(pl.DataFrame({"y": [1, 1]}), "y")


@pytest.mark.parametrize("event", [[1, 0], [1.0, 0.0], [True, False]])
def test_survival_labels(event: list[float]) -> None:
    frame = pl.DataFrame({"patient_id": ["a", "b"], "t": [3, 5], "e": event})
    times, events = survival_labels(frame, "t", "e")
    assert times.dtype == np.float64
    assert (times.tolist(), events.tolist()) == ([3.0, 5.0], [True, False])


@pytest.mark.parametrize(
    ("time", "event", "message"),
    [
        ([3.0, -1.0], [1, 0], "'t' is -1.0 for patient b"),
        ([3.0, float("inf")], [1, 0], "'t' is inf for patient b"),
        (["3 months", "4"], [1, 0], "'t' holds for example '3 months'"),
        ([3.0, 4.0], [1, 2], r"'e' holds \[1, 2\]; write 1"),
        ([3.0, 4.0], ["dead", "alive"], "'e' holds .*write 1"),
        ([3.0, 4.0], [0, 0], "'e' is 0 for all 2 patients"),
    ],
)
def test_survival_labels_are_checked(time: list[object], event: list[object], message: str) -> None:
    frame = pl.DataFrame({"patient_id": ["a", "b"], "t": time, "e": event})
    with pytest.raises(CohortError, match=message):
        survival_labels(frame, "t", "e")
