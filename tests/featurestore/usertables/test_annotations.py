"""Users' own columns: written, and read in questions, predicates, labels and exports."""

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest

import slidelake as front
from distill.evaluate.tile_labels import read_labels as read_tile_classes
from downstream import CohortError, run_mil, run_survival
from downstream.cohorts.cohort import load_labels, patient_table
from downstream.probes.probe_labels import read_tile_labels
from downstream.probes.tile_probe import run_probe
from featurestore import IdentityError, Lake, LakeConfig, LakeError, create_lake, open_lake, query
from featurestore.annotations.annotating import annotate, set_patients, tcga_patients
from featurestore.annotations.annotation_tables import labels_of, query_frame, read_annotation
from featurestore.annotations.tile_predicates import Where
from featurestore.interop import export_folder
from featurestore.tables.annotation import AnnotationError
from featurestore.tables.lance_columns import FragmentKeys
from ingest.teachers.extract_plan import choose_tiles
from tests.conftest import ROOT
from tests.worlds.command_lines import Slidelake
from tests.worlds.small_lake import add_slides, add_teacher

REGIONS = pl.DataFrame(
    {
        "slide_id": ["a", "a", "b", "b"],
        "x": [0.0, 300, 511.5, 9999],
        "y": [0.0, 255, 3, 0],
        "mark": ["T", "S", "T", "S"],
        "score": [0.5, None, 2.0, 1.0],
    }
)
CLINICAL = "Slide_ID ;grade;stage;seen\na.svs;1,5;II;true\nb;2,5;;false\nzz;3,5;I;\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a lake of two slides at two mpps with annotations of tile, slide and patient."""
    folder = tmp_path_factory.mktemp("annotated")
    lake = add_slides(create_lake(folder / "lake", LakeConfig(mpps=(0.5, 2.0))), {"a": 5, "b": 3})
    lake = add_teacher(lake, "t")
    (folder / "clinical.csv").write_text(CLINICAL)
    (folder / "patients.csv").write_text("case_id,slide_id\n007,a\n008,b\n")
    (folder / "people.csv").write_text("patient_id,sex\n007,f\n008,m\n009,f\n")
    annotate(lake, REGIONS, "region", mpp=0.5, source="regions.csv")
    run(folder, "annotate", folder / "lake", folder / "clinical.csv", "--name", "clinical")
    run(folder, "annotate", folder / "lake", folder / "patients.csv", "--name", "patients")
    run(folder, "annotate", folder / "lake", folder / "people.csv", "--name", "people")
    return folder / "lake"


def run(folder: Path, *words: object) -> str:
    """Run a command in this process; what it prints."""
    from typer.testing import CliRunner

    done = CliRunner().invoke(front.app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def lake(made: Path) -> Lake:
    """Return the lake of `made`, not to be changed."""
    return open_lake(made)


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Lake:
    """Return a copy that a test may change."""
    shutil.copytree(made, tmp_path / "lake")
    return open_lake(tmp_path / "lake")


def test_info_says_what_is_there(made: Path, lake: Lake) -> None:
    annotations = {one["name"]: one for one in lake.info()["annotations"]}
    assert [(name, one["level"], one["rows"]) for name, one in annotations.items()] == [
        ("clinical", "slide", 3),
        ("people", "patient", 3),
        ("region", "tile", 3),
    ]
    assert annotations["region"]["columns"] == {"region_mark": "string", "region_score": "double"}
    assert annotations["clinical"]["columns"] == {
        "grade": "double",
        "stage": "string",
        "seen": "bool",
    }
    text = run(made.parent, "info", made)
    assert "annotation clinical of slides: 3 rows, grade (double), stage (string)" in text
    assert "annotation region of tiles at 0.5 mpp: 3 rows, region_mark (string)" in text


def test_tiles_are_met_by_place_and_by_key(lake: Lake, copy: Lake) -> None:
    table = lake.annotation("region").collect().sort("tile_id")
    assert table.select("slide_id", "x", "mark", "score").rows() == [
        ("a", 0, "T", 0.5),
        ("a", 256, "S", None),
        ("b", 256, "T", 2.0),
    ]
    keys = table.select("tile_id", "mark").vstack(pl.DataFrame({"tile_id": [7], "mark": ["T"]}))
    by_key = annotate(copy, keys, "again")
    assert (by_key.met, by_key.unmet) == (3, ["tile 7"])
    same = copy.refreshed().annotation("again").collect().sort("tile_id")
    assert same.select("tile_id", "mark").equals(table.select("tile_id", "mark"))


def test_sql_sees_annotations_and_tables_of_users(
    made: Path, lake: Lake, tmp_path: Path, slidelake: Slidelake
) -> None:
    marks = query(lake, "SELECT region_mark, count(*) AS n FROM tiles_mpp0_5 GROUP BY 1 ORDER BY 1")
    assert sorted(marks.rows(), key=str) == [("S", 1), ("T", 2), (None, 5)]
    joined = "SELECT s.slide_id, c.grade, p.sex FROM slides AS s JOIN clinical AS c "
    joined += (
        "ON s.slide_id = c.slide_id JOIN people AS p ON s.patient_id = p.patient_id ORDER BY 1"
    )
    assert query(lake, joined).rows() == [("a", 1.5, "f"), ("b", 2.5, "m")]
    (tmp_path / "own.csv").write_text("slide_id,centre\na,01\nb,02\n")
    frame = query_frame(tmp_path / "own.csv")
    frame.write_parquet(tmp_path / "own.parquet")
    sql = "SELECT s.slide, o.centre FROM slides AS s JOIN own AS o USING (slide_id) ORDER BY 1"
    assert query(lake, sql, own={"own": query_frame(tmp_path / "own.parquet")}).height == 2
    out = run(tmp_path, "query", made, sql, "--table", f"own={tmp_path / 'own.csv'}", "--json")
    assert json.loads(out)["rows"] == [[0, "01"], [1, "02"]]
    with pytest.raises(LakeError, match="can't be called 'slides'"):
        query(lake, "SELECT 1", own={"slides": frame})
    (tmp_path / "ages.csv").write_text("Patient ID,age\n7,61\n8,70\n")
    ages = query_frame(tmp_path / "ages.csv")  # an id is text though all of them are numbers
    assert ages.schema == {"Patient ID": pl.String, "age": pl.Int64}
    twice = ("--table", f"own={tmp_path / 'own.csv'}") * 2
    assert "is given twice" in slidelake("query", made, sql, *twice, code=2).stderr


@pytest.mark.parametrize(
    ("frame", "name", "options", "message"),
    [
        (REGIONS, "region", {"mpp": 0.5}, "'region' is an annotation of tiles already"),
        (REGIONS, "r", {}, "several mpps, .*give --mpp"),
        (REGIONS, "tissue", {"mpp": 0.5}, "can't be called 'tissue'"),
        (REGIONS, "t", {"mpp": 0.5}, "two|none|rows|'t_mark'"),
        (pl.DataFrame({"tile_id": [5, 5], "a": [1, 2]}), "r", {}, "gives tile_id 5 twice"),
        (pl.DataFrame({"tile_id": [2.5e18], "a": [1]}), "r", {}, "spreadsheet keeps 15 digits"),
        (pl.DataFrame({"slide_id": ["q"], "a": [1]}), "r", {}, "none of the 1 slide .* names q"),
        (pl.DataFrame({"slide_id": ["a", None], "a": [1, 2]}), "r", {}, "row 2 .* no slide_id"),
        (pl.DataFrame({"slide_id": ["a"]}), "r", {}, "no other column"),
        (pl.DataFrame({"b": ["a"]}), "r", {}, "an annotation needs tile_id"),
        (pl.DataFrame({"slide_id": ["a"], "l": [[1]]}), "r", {}, "an annotation holds numbers"),
        (
            pl.DataFrame({"slide_id": ["a", "a"], "x": [1, 2], "y": [1, 1], "m": ["T", "S"]}),
            "r",
            {"mpp": 0.5},
            "1 tile has places that say different things",
        ),
    ],
)
def test_what_can_not_be_an_annotation(
    lake: Lake, frame: pl.DataFrame, name: str, options: dict[str, Any], message: str
) -> None:
    if name == "t":
        frame = frame.select("slide_id", "x", "y", t="mark")
        message = "'t' is a column of the tiles"
    with pytest.raises(AnnotationError, match=message):
        annotate(lake, frame, name, **options)


def test_an_annotation_is_replaced_only_if_asked(copy: Lake) -> None:
    before = copy.version
    new = REGIONS.select("slide_id", "x", "y", label="mark").head(1)
    annotate(copy, new, "region", mpp=2.0, replace_old=True)
    after = copy.refreshed()
    assert "region_mark" not in after.tiles(mpp=0.5).collect_schema()
    assert after.annotation("region").collect().rows()[0][1:] == ("a", 0, 0, 2.0, "T")
    assert open_lake(copy.uri, version=before).annotation("region").collect().height == 3
    annotate(after, pl.DataFrame({"slide_id": ["b"], "k": [1]}), "region", replace_old=True)
    last = after.refreshed()
    assert last.annotations()["region"].level == "slide"
    assert "region" not in last.tiles(mpp=2.0).collect_schema()
    assert add_slides(last, {"c": 3}).annotation("region").collect().height == 1
    annotate(last, new, "region", mpp=2.0, replace_old=True)
    assert last.refreshed().annotations()["region"].level == "tile"
    assert last.refreshed().annotation("region").collect()["label"].to_list() == ["T"]


def test_labels_are_read_from_the_lake(lake: Lake) -> None:
    cohort = patient_table(lake.slides(), load_labels(labels_of(lake, "lake:clinical")), ["grade"])
    assert dict(cohort.patients.select("patient_id", "grade").iter_rows()) == {
        "007": 1.5,
        "008": 2.5,
    }
    sexes = patient_table(lake.slides(), load_labels(labels_of(lake, "lake:people")), ["sex"])
    assert sexes.patients["sex"].to_list() == ["f", "m"]
    assert sexes.missing == ["009"]
    tiles = read_tile_labels(lake, "lake:region", "mark", mpp=0.5)
    assert tiles.rows.select("slide_id", "label").rows() == [("a", 1), ("a", 0), ("b", 1)]
    rows, classes = read_tile_classes("lake:region", lake, column="mark")
    assert (rows["mpp"].to_list(), classes) == ([0.5, 0.5, 0.5], ["S", "T"])
    with pytest.raises(LakeError, match=r"has no annotation 'regio'; .*did you mean 'region'"):
        labels_of(lake, "lake:regio")


def test_studies_ask_the_lake_for_their_labels(lake: Lake) -> None:
    """Studies read labels from the lake, as far as they go without a training."""
    for labels, columns in (("clinical", "grade, stage, seen"), ("people", "sex")):
        with pytest.raises(CohortError, match=f"no column 'side'; they have {columns}"):
            run_mil(lake.uri, f"lake:{labels}", "side", ["t"], mpps=[0.5])
        with pytest.raises(CohortError, match=f"no column 'time'; they have {columns}"):
            run_survival(lake.uri, f"lake:{labels}", "time", "e", ["t"], mpps=[0.5])
    with pytest.raises(CohortError, match="lacks side"):
        run_probe(lake.uri, "lake:region", "side", ["t"], mpp=0.5)


def test_predicates_name_annotations_of_tiles_slides_and_patients(lake: Lake) -> None:
    def asked(text: str) -> dict[str, int]:
        where = Where(lake, text)
        patients = {"a": "007", "b": "008"}
        keys = FragmentKeys(lake.store, 0.5, 0, [0, 1])
        return {
            name: len(keys.of(number, where.of(name, patients[name])))
            for number, name in enumerate("ab")
        }

    assert asked("region_mark = 'T'") == {"a": 1, "b": 1}
    assert asked("clinical.grade > 2 AND x >= 256") == {"a": 0, "b": 2}
    assert asked("clinical.stage = 'II' OR region_score = 2") == {"a": 5, "b": 1}
    assert asked("people.sex = 'm' AND slide_id <> 'people.sex'") == {"a": 0, "b": 3}
    assert asked("clinical.seen AND region_mark IS NOT NULL") == {"a": 2, "b": 0}
    choice = choose_tiles(lake, [0.5], "clinical.grade > 2 AND region_mark = 'T'", None)
    marks = {name: one.mark for name, one in lake.annotations().items()}
    assert choice.identity()["annotations"] == {n: marks[n] for n in ("clinical", "region")}
    with pytest.raises(LakeError, match="'clinical' has no column 'grad'; it has grade, stage"):
        choose_tiles(lake, [0.5], "clinical.grad > 2", None)
    with pytest.raises(LakeError, match=r"can't be asked of tiles \(.*clinical, people, region\)"):
        choose_tiles(lake, [0.5], "regoin = 'T'", None)


def test_exports_carry_annotations(lake: Lake, tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata", reason="the extra [anndata] is not installed")
    pytest.importorskip("zarr", reason="the extra [anndata] is not installed")
    first = export_folder(lake.uri, tmp_path / "z", format="anndata", mpp=0.5)
    assert (first.failed, first.written) == ([], 2)
    table = anndata.read_zarr(tmp_path / "z" / "a.zarr" / "tables" / "t_tiles")
    assert table.obs["region_mark"].tolist()[:2] == ["T", "S"]
    assert table.obs["region_score"].tolist()[0] == 0.5
    assert json.loads(table.uns["slidelake"]["annotations"])["people"] == {"sex": "f"}
    assert export_folder(lake.uri, tmp_path / "z", format="anndata", mpp=0.5).files == 0
    folder = tmp_path / "t"
    export_folder(lake.uri, folder, format="trident", mpp=0.5)
    names = sorted(path.name for path in (folder / "annotations").iterdir())
    assert names == ["clinical.csv", "people.csv", "region.csv"]
    back = read_annotation(folder / "annotations" / "region.csv").frame
    assert back.drop("tile_id", "slide_id", "x", "y", "mpp").rows()[0] == ("T", 0.5)


@pytest.mark.slow
def test_an_export_is_written_again_where_annotations_changed(copy: Lake, tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata", reason="the extra [anndata] is not installed")
    pytest.importorskip("zarr", reason="the extra [anndata] is not installed")
    for files, mark in ((2, "first"), (2, "second"), (0, "second")):
        if files:
            table = REGIONS.select("slide_id", "x", "y", mark=pl.lit(mark))
            annotate(copy.refreshed(), table, "note", mpp=0.5, replace_old=True)
        export = export_folder(copy.uri, tmp_path / "z", format="anndata", mpp=0.5)
        assert export.written == files
        tiles = anndata.read_zarr(tmp_path / "z" / "a.zarr" / "tables" / "t_tiles")
        assert tiles.obs["note"].tolist()[0] == mark


def test_patients_are_set_once_and_contradictions_named(copy: Lake) -> None:
    assert dict(copy.slides().select("slide_id", "patient_id").collect().iter_rows()) == {
        "a": "007",
        "b": "008",
    }
    table = pl.DataFrame({"slide_id": ["a", "q"], "patient_id": ["1", "2"]})
    with pytest.raises(AnnotationError, match="slide 'a' is of '007' there and of '1'"):
        set_patients(copy, table)
    done = set_patients(copy, table, replace_old=True)
    assert (done.set, done.same, done.unmet) == (1, 0, ["q"])
    again = set_patients(copy.refreshed(), table, replace_old=True)
    assert (again.set, again.same, again.version) == (0, 1, done.version)
    with pytest.raises(AnnotationError, match=r"no slide .* is called by a TCGA barcode"):
        tcga_patients(copy)
    lake = add_slides(copy.refreshed(), {"TCGA-A1-A0SB-01Z-00-DX1.9A": 2})
    run(Path(), "annotate", lake.uri, "--tcga-patients")
    patients = dict(
        lake.refreshed().slides().select("slide_id", "patient_id").collect().iter_rows()
    )
    assert patients["TCGA-A1-A0SB-01Z-00-DX1.9A"] == "TCGA-A1-A0SB"
    assert patients["a"] == "1"


def test_drop_and_rename_as_a_user_types_them(copy: Lake) -> None:
    text = run(Path(), "rename", copy.uri, "a", "A1")
    assert f"slide 'a' is 'A1' from version {copy.version + 1} on" in text
    assert "renamed before, nothing to do" in run(Path(), "rename", copy.uri, "a", "A1")
    dropped = json.loads(run(Path(), "drop", copy.uri, "--slide", "A1", "--json"))
    assert (dropped["what"], dropped["names"], dropped["done"]) == ("slide", ["A1"], True)
    assert "dropped before, nothing to do" in run(Path(), "drop", copy.uri, "--slide", "A1")
    assert "teacher t: dropped in version" in run(Path(), "drop", copy.uri, "--teacher", "t")
    assert "annotation region" in run(Path(), "drop", copy.uri, "--annotation", "region")
    after = copy.refreshed()
    assert (after.teachers(mpp=0.5), list(after.annotations())) == ({}, ["clinical", "people"])


def test_a_teacher_can_not_take_the_name_of_an_annotation(copy: Lake) -> None:
    annotate(copy, REGIONS.select("slide_id", "x", "y", "mark"), "area", mpp=0.5)
    with pytest.raises(IdentityError, match="'area' is a column of annotation kind"):
        add_teacher(copy.refreshed(), "area")


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("opaque", [True, False])
def test_features_as_rivals_write_them(tmp_path: Path, batched: bool, opaque: bool) -> None:  # noqa: FBT001
    from featurestore.interop import import_folder
    from tests.worlds.interop_files import trident_features, trident_patches, two_contours, values

    xy, features = two_contours(), values(21, 8)
    trident_patches(tmp_path / "job", "a", xy)
    path = trident_features(tmp_path / "job", "a", xy, "uni", features)
    half = np.ascontiguousarray(features).view(np.uint32) >> 16  # bfloat16, cut off
    expected = (half << 16).view(np.float32) if opaque else features
    stored: Any = half.astype("<u2").view("V2") if opaque else features
    with h5py.File(path, "a") as file:
        for name, array in (("features", stored), ("coords", xy)):
            attrs = dict(file[name].attrs)
            del file[name]
            file.create_dataset(name, data=array[None] if batched else array).attrs.update(attrs)
    imported = import_folder(tmp_path / "lake", tmp_path / "job", format="trident")
    assert not imported.failed
    bag = open_lake(tmp_path / "lake").bag("a", "uni", mpp=0.5)
    order = {(int(x), int(y)): at for at, (x, y) in enumerate(xy)}
    places = [order[int(x), int(y)] for x, y in zip(bag.x, bag.y, strict=True)]
    assert np.array_equal(bag.features, expected[places].astype(np.float16))


def test_duckdb_reads_features_as_float32(lake: Lake) -> None:
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed: pip install duckdb")
    halves = lake.features("t", mpp=0.5).collect()
    with pytest.raises(duckdb.NotImplementedException, match="Unsupported Internal Arrow Type"):
        duckdb.sql("SELECT * FROM halves")
    page = (ROOT / "docs" / "questions.md").read_text()
    names: dict[str, Any] = {"lake": lake, "teacher": "t"}
    exec(page.split("```python duckdb\n")[1].split("```")[0], names)
    stored = halves.sort("tile_id").select("slide_id", "t")
    squares = (stored["t"].to_numpy().astype(np.float64) ** 2).sum(axis=1)
    means = stored.with_columns(norm2=squares).group_by("slide_id").agg(pl.col("norm2").mean())
    norms = {slide: (tiles, norm2) for slide, tiles, norm2 in names["norms"]}
    assert {slide: tiles for slide, (tiles, _) in norms.items()} == {"a": 5, "b": 3}
    assert all(np.isclose(norms[slide][1], norm2) for slide, norm2 in means.iter_rows())
    wide = lake.tiles(mpp=0.5, dtype="float32").collect()
    assert duckdb.sql("SELECT count(*) FROM wide WHERE region_mark = 'T'").fetchall() == [(2,)]
    del halves, wide
    with pytest.raises(LakeError, match="dtype 'float64' given"):
        lake.tiles(mpp=0.5, dtype="float64")
