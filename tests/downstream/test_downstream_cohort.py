"""Labels meet slides: what is joined, what is listed, what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from downstream import CohortError, patient_table, read_labels
from downstream.cohorts.cohort import LabelTable, keep_slides, load_labels
from downstream.cohorts.outcomes import (
    class_labels,
    guess_task,
    multilabel_labels,
    refuse_near_numbers,
    regression_labels,
    site_of,
    survival_labels,
)
from tests.featurestore.interop.test_interop_tables import write_frame


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


UNKNOWN_PATIENTS = lake_slides([(slide, None, "ready") for slide in ("s1", "s2", "s3", "s5")])


def labels(**columns: Any) -> pl.DataFrame:  # noqa: ANN401
    return pl.DataFrame(columns)


def test_slide_labels_take_the_patient_from_the_lake() -> None:
    table = labels(slide_id=["s3", "s2", "s1", "s9", "s4"], tumour=[0, 1, 1, 0, 1])
    cohort = patient_table(lake_slides(), table, ["tumour"])
    assert cohort.patients.rows() == [("p1", ["s1", "s2"], 1), ("p2", ["s3"], 0)]
    assert cohort.missing == ["s4", "s9"]
    assert cohort.surplus == ["s5"]
    assert cohort.slide_ids == ["s1", "s2", "s3"]


def test_a_patient_that_contradicts_the_lake_is_refused_unless_it_is_meant() -> None:
    table = labels(
        slide_id=["s1", "s2", "s3", "s5"], patient_id=["s1", None, "s3", "y"], tumour=[0, 1, 1, 1]
    )
    with pytest.raises(CohortError) as caught:
        patient_table(lake_slides(), table, ["tumour"])
    message = str(caught.value)
    assert "2 slides have another patient in the labels than in the lake" in message
    assert "s1: s1 in the labels, p1 in the lake, s3: s3 in the labels, p2 in the lake" in message
    assert "--patients-from labels" in message
    meant = LabelTable(
        table=table, unplaced=table.head(0), notes=(), sha256="", patients_from="labels"
    )
    cohort = patient_table(lake_slides(), meant, ["tumour"])
    assert cohort.patients["patient_id"].to_list() == ["p1", "s1", "s3", "y"]


def test_the_labels_name_the_patient_where_the_lake_knows_none() -> None:
    table = labels(slide_id=["s1", "s2", "s5"], patient_id=["p1", None, "y"], tumour=[1, 1, 1])
    cohort = patient_table(lake_slides(), table, ["tumour"])
    assert cohort.patients.rows() == [("p1", ["s1", "s2"], 1), ("y", ["s5"], 1)]


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
        (labels(slide_id=["s5"], tumour=[1]), "1 labelled slide has no patient.*s5"),
        (labels(slide_id=["x1.svs"], tumour=[1]), "labels have x1.svs; the lake has s1, s2"),
        (
            labels(slide_id=["s5", "s5"], patient_id=["a", "b"], tumour=[1, 1]),
            "1 slide belongs to more than one patient: s5",
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
        ("labels.json", "", r"ends in '.json'; allowed are \.csv, \.tsv, \.txt, \.xlsx"),
        ("labels.csv", "id,grade\na,1\n", r"columns \['id', 'grade'\]; none is called as ids"),
        ("labels.xlsx", "no workbook", "can't be read as xlsx"),
        (
            "labels.csv",
            "case_id,Patient,y\na,b,1\n",
            "case_id, Patient, each of .*patient_column='c",
        ),
        ("labels.tsv", "slide_id\tFILENAME\na\tb\n", "choose one by slide_column='slide_id'"),
        ("labels.csv", "", "is empty; its first row names the columns"),
        ("labels.parquet", "no parquet", "can't be read as parquet"),
    ],
)
def test_unreadable_labels_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(CohortError, match=message):
        read_labels(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"there is no table .*nothing\.csv"):
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
    class_names, index = class_labels(pl.DataFrame({"y": values}), "y")
    assert (class_names, index.tolist()) == (classes, expected)


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


@pytest.mark.parametrize(
    "name", ["censorship", "Censored", "is_censored", "cens", "OS_CENS", "alive", "survived"]
)
def test_a_column_whose_name_says_censoring_is_refused(name: str) -> None:
    frame = pl.DataFrame({"patient_id": ["a", "b", "c"], "t": [3, 5, 6], name: [1, 0, 1]})
    with pytest.raises(CohortError, match=r"1 is a patient without the event.*--event-means"):
        survival_labels(frame, "t", name)
    _, events = survival_labels(frame, "t", name, event_means="censored")
    assert events.tolist() == [False, True, False]
    _, events = survival_labels(frame, "t", name, event_means="event")
    assert events.tolist() == [True, False, True]


@pytest.mark.parametrize("name", ["event", "dead", "uncensored", "OS.event", "recent", "status"])
def test_a_column_whose_name_says_an_event_is_taken(name: str) -> None:
    frame = pl.DataFrame({"patient_id": ["a", "b"], "t": [3, 5], name: [1, 0]})
    assert survival_labels(frame, "t", name)[1].tolist() == [True, False]
    censored = frame.with_columns(pl.lit(1).alias(name))
    with pytest.raises(CohortError, match="is 1 for all 2 patients; survival needs events"):
        survival_labels(censored, "t", name, event_means="censored")


def test_numbers_that_one_cell_turns_into_text_are_refused() -> None:
    ages = [str(40 + at) for at in range(29)]
    frame = pl.DataFrame({"patient_id": [f"p{at}" for at in range(30)], "age": [*ages, ">90"]})
    with pytest.raises(CohortError, match="'age' is '>90' for patient p29, and a number for 29"):
        refuse_near_numbers(frame, "age")
    refuse_near_numbers(frame.head(29).with_columns(pl.col("age").cast(pl.Int64)), "age")
    grades = pl.DataFrame({"patient_id": list("abcdef"), "g": ["1", "2", "G3", "1", "2", "G3"]})
    refuse_near_numbers(grades, "g")


# ---------------------------------------------------------------------- tables as they are


def write(path: Path, frame: pl.DataFrame) -> Path:
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    elif path.suffix == ".tsv":
        frame.write_csv(path, separator="\t")
    else:
        write_frame(frame, path)
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "xlsx", "parquet"])
def test_clams_and_patho_benchs_tables_are_read_as_they_are(tmp_path: Path, suffix: str) -> None:
    frame = labels(
        case_id=["007", "007", "8"],
        slide_id=["s1", "s2", "s3"],
        label=["tumor_tissue", "tumor_tissue", "normal_tissue"],
        fold_0=["train", "train", "test"],
    )
    table = load_labels(write(tmp_path / f"l.{suffix}", frame))
    assert table.table.columns == ["slide_id", "patient_id", "label", "fold_0"]
    assert "patient_id is column 'case_id'" in table.notes[0]
    cohort = patient_table(UNKNOWN_PATIENTS, table, ["label"])
    assert cohort.patients.rows() == [
        ("007", ["s1", "s2"], "tumor_tissue"),
        ("8", ["s3"], "normal_tissue"),
    ]
    assert cohort.notes == table.notes


@pytest.mark.parametrize("suffix", ["csv", "xlsx"])
def test_stamps_two_tables_are_joined_and_nobody_is_lost(tmp_path: Path, suffix: str) -> None:
    clini = labels(PATIENT=["A", "B", "C", "D"], isMSIH=["MSIH", "nonMSIH", "MSIH", None])
    files = labels(
        PATIENT=["A", "A", "B", "E", "D"],
        FILENAME=["site/s1.h5", "site/s2.h5", "s3.h5", "s5.h5", "s9.h5"],
    )
    paths = [tmp_path / f"{name}.{suffix}" for name in ("clini", "slide")]
    clini_path, slide_path = (write(*pair) for pair in zip(paths, (clini, files), strict=True))
    table = load_labels(clini_path, slides=slide_path)
    cohort = patient_table(UNKNOWN_PATIENTS, table, ["isMSIH"])
    assert cohort.patients.rows() == [("A", ["s1", "s2"], "MSIH"), ("B", ["s3"], "nonMSIH")]
    assert cohort.missing == ["C"]  # has a label, and no slide; D has no label
    assert cohort.surplus == ["s5"]
    assert any("1 patient has no labels: E" in note for note in cohort.notes)
    assert any("1 patient is not in the slide table: C" in note for note in cohort.notes)
    assert table.sha256 != load_labels(clini_path).sha256
    with pytest.raises(CohortError, match="a slide table names slides and patients"):
        load_labels(clini_path, slides=clini_path)


def test_two_candidates_are_decided_by_the_user(tmp_path: Path) -> None:
    frame = labels(patient_id=["x", "y"], CASE_ID=["1", "2"], scan=["s1", "s3"], grade=[1, 2])
    path = write(tmp_path / "l.csv", frame)
    with pytest.raises(CohortError, match=r"patient_id, CASE_ID, .* patient_column='patient_id'"):
        load_labels(path)
    with pytest.raises(
        CohortError, match=r"slide_column='image': table .* has no column 'image'; it has"
    ):
        load_labels(path, patient_column="CASE_ID", slide_column="image")
    table = load_labels(path, patient_column="CASE_ID", slide_column="scan")
    assert table.table.rows() == [("s1", "1", 1), ("s3", "2", 2)]
    assert any("column 'patient_id' is left out" in note for note in table.notes)


def test_whole_numbers_that_became_floats_are_ids_again(tmp_path: Path) -> None:
    frame = labels(slide_id=[101.0, 102.0], patient_id=[1.0, None], grade=[1, 2])
    table = read_labels(write(tmp_path / "l.parquet", frame))
    assert table.rows() == [("101", "1", 1), ("102", None, 2)]


def test_words_for_no_value_are_told(tmp_path: Path) -> None:
    frame = labels(slide_id=["s1", "s3"], infiltrate=["None", "dense"], age=["NA", "70"])
    cohort = patient_table(
        lake_slides(), load_labels(write(tmp_path / "l.csv", frame)), ["infiltrate"]
    )
    assert cohort.patients.rows() == [("p2", ["s3"], "dense")]
    assert cohort.notes[0] == "column 'infiltrate': 1 cells read 'None', taken as no value"


@pytest.mark.parametrize(
    ("names", "used", "missing", "note"),
    [
        (["s1.svs", "in/s3.ome.tiff"], ["s1", "s3"], [], "'in/s3.ome.tiff' is 's3'"),
        (["s1", "s3.h5"], ["s1", "s3"], [], "1 slide is matched without"),
        (["s1.svs", "s1.tif", "s3"], ["s3"], ["s1.svs", "s1.tif"], "2 names are not"),
        (["s3", "s4.svs"], ["s3"], ["s4"], "'s4.svs' is 's4'"),  # in the lake, and failed
        (["s3", "s3b.v1"], ["s3"], ["s3b.v1"], None),
    ],
)
def test_slides_are_matched_without_endings_where_one_is_meant(
    names: list[str], used: list[str], missing: list[str], note: str | None
) -> None:
    cohort = patient_table(lake_slides(), labels(slide_id=names, y=[1] * len(names)), ["y"])
    assert (cohort.slide_ids, cohort.missing) == (used, missing)
    assert [note in text for text in cohort.notes] == [True] if note else not cohort.notes


def test_two_slides_of_the_lake_with_one_stem_are_not_guessed() -> None:
    slides = lake_slides(
        [("a.svs", "p1", "ready"), ("a.tif", "p2", "failed"), ("b", "p3", "ready")]
    )
    cohort = patient_table(slides, labels(slide_id=["a", "b"], y=[1, 0]), ["y"])
    assert (cohort.slide_ids, cohort.missing, cohort.surplus) == (["b"], ["a"], ["a.svs"])


# ---------------------------------------------------------------------- several columns


def test_half_a_label_is_listed_and_no_label_is_none() -> None:
    table = labels(slide_id=["s1", "s3", "s5"], patient_id=["p1", "p2", "p5"],
                   a=[1, 0, None], b=[0, None, None])  # fmt: skip
    cohort = patient_table(lake_slides(), table, ["a", "b"])
    assert cohort.patients.rows() == [("p1", ["s1"], 1, 0)]
    assert cohort.missing == ["s3"]
    assert cohort.surplus == ["s2", "s3", "s5"]
    assert "1 slide has some but not all of a, b, left out: s3" in cohort.notes[0]


def test_columns_that_are_carried_along_may_be_null() -> None:
    table = labels(slide_id=["s1", "s2", "s3"], y=[1, 1, 0], site=[None, "north", None])
    cohort = patient_table(lake_slides(), table, ["y"], extra_columns=["site", "y"])
    assert cohort.patients.rows() == [("p1", ["s1", "s2"], 1, "north"), ("p2", ["s3"], 0, None)]
    assert site_of(["p1", "p1"], cohort, "site") == ["north", "north"]
    with pytest.raises(CohortError, match="1 patient has no site in 'site': p2; fill it in"):
        site_of(["p2", "p1"], cohort, "site")
    with pytest.raises(CohortError, match="no column 'centre'; it has patient_id, slide_ids, y"):
        site_of(["p1"], cohort, "centre")
    torn = table.with_columns(site=pl.Series(["south", "north", None]))
    with pytest.raises(
        CohortError, match=r"conflicting values of 'site'.*p1: \['north', 'south'\]"
    ):
        patient_table(lake_slides(), torn, ["y"], extra_columns=["site"])


def test_sites_of_tcga_barcodes() -> None:
    cohort = patient_table(lake_slides(), labels(slide_id=["s1"], y=[1]), ["y"])
    assert site_of(["TCGA-A2-A0T2", "TCGA-3C-AAAU-01Z"], cohort, "tcga") == ["A2", "3C"]
    with pytest.raises(CohortError, match="1 patient has no TCGA barcode: p1"):
        site_of(["p1", "TCGA-A2-A0T2"], cohort, "tcga")


def test_multilabel_labels() -> None:
    frame = pl.DataFrame({"a": [1.0, 0.0, 1.0], "b": [True, False, False]})
    names, label_PC = multilabel_labels(frame, ["b", "a"])
    assert names == ["b", "a"]
    assert label_PC.dtype == np.int64
    assert label_PC.tolist() == [[1, 1], [0, 0], [0, 1]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([], "name at least one"),
        (["a", "a"], "each once"),
        (["a", "two"], r"'two' holds \[0, 2\]; write 1"),
        (["a", "text"], r"'text' holds \['n', 'y'\]; write 1"),
        (["a", "all"], "'all' is 1 for all 2 patients; leave it out"),
    ],
)
def test_multilabel_labels_are_checked(columns: list[str], message: str) -> None:
    frame = pl.DataFrame({"a": [0, 1], "two": [2, 0], "text": ["y", "n"], "all": [1, 1]})
    with pytest.raises(CohortError, match=message):
        multilabel_labels(frame, columns)


def test_regression_labels() -> None:
    numbers = regression_labels(pl.DataFrame({"patient_id": ["a", "b"], "y": [3, 5]}), "y")
    assert numbers.dtype == np.float64
    assert numbers.tolist() == [3.0, 5.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["1", "2"], "'y' holds for example '1'; a regression needs numbers"),
        ([1.0, float("inf")], "'y' is inf for patient b"),
        ([2.5, 2.5], "'y' is 2.5 for all 2 patients"),
    ],
)
def test_regression_labels_are_checked(values: list[object], message: str) -> None:
    with pytest.raises(CohortError, match=message):
        regression_labels(pl.DataFrame({"patient_id": ["a", "b"], "y": values}), "y")


@pytest.mark.parametrize(
    ("values", "task"),
    [
        ([True, False, None], "binary"),
        ([1.0, 0.0, 1.0], "binary"),
        (["a", "b", "c"], "multiclass"),
        (list(range(20)), "multiclass"),
        (list(range(21)), "regression"),
        ([0.0, 1.0, 0.5], "regression"),
        ([str(n) for n in range(30)], "multiclass"),
    ],
)
def test_the_task_is_guessed_from_values(values: list[object], task: str) -> None:
    assert guess_task(pl.Series(values)) == task


# ---------------------------------------------------------------------- to the letter


def loaded(tmp_path: Path, text: str, **ids: Any) -> LabelTable:  # noqa: ANN401
    path = tmp_path / "labels.csv"
    path.write_text(text)
    return load_labels(path, **ids)


def test_ids_and_sites_of_a_table_are_text_to_the_letter(tmp_path: Path) -> None:
    slides = lake_slides([("0012", "7", "ready"), ("12", "07", "ready"), ("12.10", "x", "ready")])
    text = "Slide_ID;Grade ;Site\n0012;1,5;12.10\n12;2;12.1\n12.10;3;012\n"
    cohort = patient_table(slides, loaded(tmp_path, text), ["grade"], extra_columns=["site"])
    assert cohort.patients.rows() == [
        ("07", ["12"], 2.0, "12.1"),
        ("7", ["0012"], 1.5, "12.10"),
        ("x", ["12.10"], 3.0, "012"),
    ]
    assert site_of(["7", "07", "x"], cohort, "site") == ["12.10", "12.1", "012"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "slide_id,y\ns1,1\nS1,0\n",
            r"column 'slide_id': 'S1' \(row 3\) and 's1' \(row 2\) differ",
        ),
        ("patient_id,y\np1,1\nP1,0\n", "column 'patient_id': 'P1' .* differ by case only"),
        ("slide_id,y\nS1,1\ns3,0\n", "slides: 'S1' and 's1' of the lake differ by case only"),
        ("slide_id,y\ns1 ,1\ns3,0\n", "slides: 's1 ' and 's1' of the lake differ by blanks only"),
        ("slide_id,y\nin/S1.svs,1\ns3,0\n", "slides: 'S1' and 's1' of the lake differ by case"),
        ("patient_id,y\nP1,1\np2,0\n", "'P1' and 'p1' of the lake differ by case only"),
        (
            "slide_id,patient_id,y\ns5,P2,1\ns3,,0\n",
            "patients of the labels and the lake: 'P2' and 'p2' differ by case only",
        ),
        ("slide_id,y\ns1,Tumour\ns3,tumour\n", "column 'y': 'Tumour' and 'tumour' differ by case"),
        ("slide_id,y,z\ns1,1,a\ns3,0,a\u00a0\n", r"column 'z': 'a' and 'a\\xa0' differ by blanks"),
    ],
)
def test_near_ids_sites_and_classes_are_refused(tmp_path: Path, text: str, message: str) -> None:
    def join(**ids: Any) -> pl.DataFrame:  # noqa: ANN401
        table = loaded(tmp_path, text, **ids)
        extra_columns = ["z"] if "z" in table.table.columns else []
        return patient_table(lake_slides(), table, ["y"], extra_columns=extra_columns).patients

    with pytest.raises(CohortError, match=message):
        join()
    # then for another reason at most
    assert "differ by" not in refusal(lambda: join(distinct_ids=True))


def refusal(call: Callable[[], object]) -> str:
    """Return why a call is refused; nothing if it is not."""
    try:
        call()
    except CohortError as error:
        return str(error)
    return ""


def test_near_ids_that_are_said_to_differ_stay_apart(tmp_path: Path) -> None:
    slides = lake_slides([("a", "p1", "ready"), ("A", "P1", "ready"), ("b", "p1 ", "ready")])
    text = "slide_id,y\na,t\nA,T\nb,t\n"
    with pytest.raises(CohortError, match="--distinct-ids"):
        loaded(tmp_path, text)
    cohort = patient_table(slides, loaded(tmp_path, text, distinct_ids=True), ["y"])
    assert cohort.patients.rows() == [("P1", ["A"], "T"), ("p1", ["a"], "t"), ("p1 ", ["b"], "t")]
    assert cohort.distinct_ids


def test_cells_that_can_not_be_read_are_named(tmp_path: Path) -> None:
    table = loaded(tmp_path, 'slide_id,months,y\ns1,"3,5",1\ns3,7,0\n')
    with pytest.raises(CohortError, match=r"row 2, column 'months': '3,5' has a decimal comma"):
        patient_table(lake_slides(), table, ["months", "y"], numbers=["months"])
    # a column that nobody asks for troubles nobody
    assert patient_table(lake_slides(), table, ["y"]).patients.height == 2
    table = loaded(tmp_path, "slide_id,months,y\ns1,3,1\ns3,7 months,0\n")
    with pytest.raises(CohortError, match=r"row 3, column 'months': '7 months' is no number"):
        patient_table(lake_slides(), table, ["months", "y"], numbers=["months"])


def test_near_patients_of_two_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "slides.tsv").write_text("PATIENT\tFILENAME\np1\ts1.svs\nP2 \ts3.svs\n")
    text = "PATIENT,y\np1,1\nP2,0\n"
    with pytest.raises(CohortError, match=r"'P2' and 'P2 ' differ by blanks only"):
        loaded(tmp_path, text, slides=tmp_path / "slides.tsv")
    ids = {"slides": tmp_path / "slides.tsv", "distinct_ids": True}
    cohort = patient_table(lake_slides(), loaded(tmp_path, text, **ids), ["y"])
    assert cohort.patients.rows() == [("p1", ["s1"], 1)]
    assert cohort.missing == ["P2"]
