"""Each option of the commands that need no Ray, and what it changes that a user can see."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import polars as pl
import pytest

from featurestore import build_index, open_lake
from ingest import CARDS
from ingest.teachers.weights.weights_files import find_weights
from tests.conftest import REAL_SLIDE
from tests.worlds import command_worlds, interop_files
from tests.worlds.command_lines import Answer, CommandLine, Output, Places, command_line
from tests.worlds.painted_lake import painted_lake
from tests.worlds.run_folders import write_run

Run = Callable[..., Answer]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """Lakes and tables that no line changes, but for new runs."""
    folder = tmp_path_factory.mktemp("shared")

    def painted() -> Path:
        lake = painted_lake(folder / "painted")
        write_run(lake, "binary", arms=ARMS, attention=ARMS)
        return folder / "painted"

    return Places(
        {
            "bags": lambda: command_worlds.bags_lake(folder),
            "labels": lambda: command_worlds.labels(folder),
            "tiles": lambda: command_worlds.tile_table(folder),
            "fragments": lambda: command_worlds.two_fragments(folder),
            "painted": painted,
            "slide": lambda: REAL_SLIDE,
        }
    )


@pytest.fixture
def places(shared: Places, tmp_path: Path) -> Places:
    """Return the shared places, a folder of the test's own, and a copy of a lake to change."""

    def copied() -> Path:
        shutil.copytree(str(shared["fragments"]), tmp_path / "copied")
        return tmp_path / "copied"

    return Places({**{name: partial(shared.__getitem__, name) for name in shared.makers},
                   "tmp": lambda: tmp_path, "lake": copied})  # fmt: skip


@pytest.fixture
def run(capsys: Output, places: Places) -> Run:
    """Run a line with the places of this test."""

    def run(line: CommandLine, *, code: int | None = 0) -> Answer:
        return line.run(capsys, places, code=code)

    return run


# ---------------------------------------------------------------------- the lake

COUNT = "'SELECT slide_id, count(*) AS tiles FROM tiles_mpp0_5 GROUP BY slide_id'"
DEBUG = command_line("--debug info no-such-lake")
QUERY = command_line(f"query {{fragments}} {COUNT} --format json --out {{tmp}}/answer.txt --json")
QUERY_AT = command_line("query {fragments} 'SELECT count(*) FROM slides' --format csv --at 4")
INFO = command_line("info {fragments} --at 4 --json")
VERIFY = command_line("verify {fragments} --sample 0.01 --quiet --json")
VERIFY_AT = command_line("verify {fragments} --at 4 --json")
REPAIR = command_line("repair {lake} --quiet --json")
COMPACT = command_line("compact {lake} --rows 100 --quiet --json")
COMPACT_ALL = command_line("compact {lake}")
VACUUM_TRY = command_line("vacuum {lake} --keep 1 --dry-run --json")
VACUUM = command_line("vacuum {lake} --keep 3 --json")
SNAPSHOT = command_line("snapshot {lake} paper-v1 --at 4 --json")


def test_debug_shows_the_traceback_of_an_error(run: Run) -> None:
    assert "Traceback" in run(DEBUG, code=2).stderr


def test_query_writes_a_file_of_the_named_format(run: Run, places: Places) -> None:
    written = run(QUERY).value
    assert (written["format"], written["rows"]) == ("json", 3)
    rows = json.loads(Path(str(places["tmp"]), "answer.txt").read_text())
    assert {row["slide_id"]: row["tiles"] for row in rows} == command_worlds.SIZES


def test_query_and_info_read_the_version_that_is_named(run: Run) -> None:
    assert run(QUERY_AT).stdout.split() == ["len", "2"]
    info = run(INFO).value
    assert (info["version"], info["slides"]["ready"]) == (4, 2)


def test_verify_reads_a_share_of_the_slides_or_an_old_version(run: Run) -> None:
    assert run(VERIFY).value["checked"]["tiles"] < 2 * 310
    assert run(VERIFY_AT).value["checked"]["tiles"] == 2 * (5 + 5)


def test_repair_takes_nothing_out_of_a_whole_lake(run: Run) -> None:
    assert not any(run(REPAIR).value.values())


def test_compact_merges_fragments_up_to_a_number_of_rows(run: Run) -> None:
    few = run(COMPACT).value
    assert few["before"] == few["after"]
    assert "4 fragments became 2" in run(COMPACT_ALL).stdout


def test_vacuum_says_what_it_would_remove_and_keeps_the_newest(run: Run, places: Places) -> None:
    newest = open_lake(Path(str(places["lake"]))).version
    would = run(VACUUM_TRY).value
    assert newest - 1 not in would["kept"]
    assert would["versions"] > 0
    done = run(VACUUM).value
    assert set(done["kept"]) == {*would["kept"], newest - 2, newest - 1, newest}
    assert 0 < done["versions"] < would["versions"]


def test_snapshot_names_an_older_version(run: Run, places: Places) -> None:
    assert run(SNAPSHOT).value == {"snapshot": "paper-v1", "version": 4}
    assert open_lake(Path(str(places["lake"])), version="paper-v1").version == 4


# ---------------------------------------------------------------------- other tools' files

IMPORT_CLAM = command_line(
    "import {tmp}/clam-lake {tmp}/clam --format clam --mpp 0.5 --tile-px 256 --tile-px-level0 512 "
    "--teacher resnet50 --json"
)
IMPORT_STAMP = command_line(
    "import {tmp}/stamp-lake {tmp}/stamp --format stamp --level0-mpp 0.25 --quiet --json"
)
EXPORT_PERMITTED = command_line(
    "export {fragments} {tmp}/permitted --format trident --mpp 0.5 --i-have-permission letter "
    "--json"
)
EXPORT_NAMELESS = command_line(
    "export {fragments} {tmp}/nameless --format trident --mpp 0.5 --deidentify {tmp}/key.csv --json"
)
EXPORT = command_line(
    "export {fragments} {tmp}/out --format geojson --tiles --teacher t --mpp 0.5 --at 6 --quiet "
    "--json"
)


def test_export_records_the_permission(run: Run, tmp_path: Path) -> None:
    run(EXPORT_PERMITTED)
    kept = json.loads((tmp_path / "permitted/licences.json").read_text())
    assert kept["permission"] == "letter"
    assert kept["licences"]["t"] == {"text": "not stated", "forbids": []}


def test_export_gives_slides_the_names_of_the_key(run: Run, tmp_path: Path) -> None:
    run(EXPORT_NAMELESS)
    names = pl.read_csv(tmp_path / "key.csv").filter(pl.col("kind") == "slide")["name"]
    files = {
        path.name.split("_")[0].split(".")[0] for path in (tmp_path / "nameless").rglob("*.h5")
    }
    assert files
    assert files <= set(names)


def test_import_takes_what_clams_files_do_not_say(run: Run, tmp_path: Path) -> None:
    xy = interop_files.grid(3, 2, 512)
    interop_files.clam_features(tmp_path / "clam", "a", xy, interop_files.values(6, 8))
    imported = run(IMPORT_CLAM).value
    assert imported["features"] == {"resnet50 at 0.5": 1}
    lake = open_lake(tmp_path / "clam-lake")
    assert (lake.config.tile_px, lake.tiles_of(mpp=0.5)["tile_px_level0"].item()) == (256, 512)


def test_import_places_stamps_tiles_by_the_slides_mpp(run: Run, tmp_path: Path) -> None:
    um = interop_files.grid(3, 2, 1024) * 0.25
    interop_files.stamp(tmp_path / "stamp" / "virchow2-0", "a", um, interop_files.values(6, 8))
    assert run(IMPORT_STAMP).value["failed"] == []
    tiles = open_lake(tmp_path / "stamp-lake").tiles(mpp=1.145).collect()
    assert sorted(set(tiles["x"])) == [0, 1024, 2048]


def test_export_writes_tiles_of_one_mpp_as_they_were_at_a_version(run: Run, places: Places) -> None:
    done = run(EXPORT).value
    assert (done["version"], done["written"]) == (6, 3)
    tiles = json.loads(Path(str(places["tmp"]), "out", "a.geojson").read_text())["features"]
    assert sum(one["properties"].get("objectType") == "tile" for one in tiles) == 5


# ---------------------------------------------------------------------- what features are worth

STATS = command_line(
    "stats {bags} --teacher good --mpp 0.5 --holdout 0.5 --seed 3 --at 8 --quiet --json"
)
PROBE = command_line(
    "probe {bags} --labels {tiles} --target side --features good --features noise --mpp 0.5 "
    "--patients-from agree --unseen-students "
    "--distinct-ids --shots 3 --draws 4 --tiles 100 --folds 3 --reference 'noise / linear' "
    "--margin 0.1 --patient-column subject --slide-column picture --seed 2 --at 8 --json"
)
PROBE_SET = command_line(
    "probe {bags} --labels {tiles} --target side --features good --patient-column subject "
    "--slide-column picture --distinct-ids --set probe.models=linear --set probe.folds=2 --json"
)
PROBE_LIKE = command_line("probe {bags} --like {probe_run} --seed 4 --set probe.shots=2 --json")
SEARCH = command_line(
    "search {bags} --like s03a:0,0 --features good --mpp 0.5 -k 4 --other-patients-only --exact "
    "--out {tmp}/near.html --at 8 --json"
)
SEARCH_INDEX = command_line(
    "search {lake} --like c:0,0 --features t --build-index --recall-tiles 3 --json"
)
SEARCH_LABELS = command_line(
    "search {bags} --labels {labels} --target kind --features good --features noise "
    "--out {tmp}/measured.html --json"
)
ARMS = ("good / abmil", "noise / abmil")
ATTENTION = command_line(
    "attention {painted} mil-binary s00a --arm 'noise / abmil' --out {tmp}/maps --json"
)
ATTENTION_ALL = command_line(
    "attention {painted} mil-binary --all --arm 'good / abmil' --out {tmp}/every --quiet --json"
)
ATTENTION_BOTH = command_line("attention {painted} mil-binary s00a --all")
RUNS = command_line("runs {painted} --out {tmp}/runs.parquet --json")
REPORT = command_line("report {bags} --at 8 --json")


def test_stats_leave_out_a_share_of_the_patients(run: Run) -> None:
    fitted = run(STATS).value
    assert [(one["mpp"], one["lake_version"]) for one in fitted["sets"]] == [(0.5, 8)]
    assert fitted["slides"] == 12


def test_probe_takes_the_table_as_it_is_and_says_what_was_set(run: Run) -> None:
    study = run(PROBE).value
    assert study["lake_version"] == 8
    assert (study["tiles"], study["patients"]) == (100, 12)
    (row,) = (row for row in study["comparisons"] if row["one"] == "good / linear")
    assert (row["other"], row["margin"]) == ("noise / linear", 0.1)
    config: dict[str, Any] = study["config"]
    assert config["classes"] == ["S", "s"]
    expected = {"mpps": [0.5], "shots": 3, "draws": 4, "folds": 3, "seed": 2}
    assert {name: config[name] for name in expected} == expected


def test_probe_sets_any_field_and_starts_from_another_run(run: Run, places: Places) -> None:
    first = run(PROBE_SET).value
    assert (first["config"]["models"], first["folds"]) == (["linear"], 2)
    places["probe_run"] = first["run"]
    config = run(PROBE_LIKE).value["config"]
    expected = {"models": ["linear"], "folds": 2, "classes": ["S", "s"], "seed": 4, "shots": 2}
    assert {name: config[name] for name in expected} == expected


def test_search_compares_with_all_tiles_of_other_patients(run: Run, places: Places) -> None:
    near = run(SEARCH).value
    assert (near["search"], near["k"], near["lake_version"]) == ("exact", 4, 8)
    assert len(near["results"]) == 4
    assert "p03" not in {one["patient"] for one in near["results"]}
    assert "<img" in Path(str(places["tmp"]), "near.html").read_text()


def test_search_builds_an_index_and_measures_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cast("dict[str, Any]", build_index.__kwdefaults__), "least_rows", 256)
    near = run(SEARCH_INDEX).value
    assert (near["search"], near["index"]["indexed"]) == ("index", 310)
    assert near["recall"]["tiles"] == 3
    assert len(near["results"]) == 12


def test_search_is_measured_on_labelled_slides(run: Run, places: Places) -> None:
    answer = run(SEARCH_LABELS).value
    assert (answer["target"], answer["slides"], answer["patients"]) == ("kind", 24, 12)
    assert list(answer["columns"]) == ["good", "noise"]
    measures = answer["columns"]["good"]["measures"]
    assert list(measures) == ["acc@1", "acc@3", "acc@5", "mvacc@3", "mvacc@5", "mmv@5"]
    assert measures["acc@1"]["low"] <= measures["acc@1"]["estimate"] <= measures["acc@1"]["high"]
    assert "mvacc@5" in Path(str(places["tmp"]), "measured.html").read_text()


def test_attention_is_of_the_named_arm(run: Run, places: Places) -> None:
    files = [Path(name) for name in run(ATTENTION).value["files"]]
    assert {path.parent for path in files} == {Path(str(places["tmp"]), "maps")}
    assert all(path.exists() and "noise" in path.name for path in files)


def test_attention_of_all_slides_is_listed_on_a_page(run: Run, places: Places) -> None:
    answer = run(ATTENTION_ALL).value
    assert answer["new"] == answer["heatmaps"] > 1
    assert all(Path(name).exists() for name in answer["files"])
    assert Path(answer["page"]).name == "index.html"
    assert run(ATTENTION_ALL).value["new"] == 0
    assert "both given of SLIDE and --all" in run(ATTENTION_BOTH, code=2).stderr


def test_runs_are_written_as_a_table(run: Run, places: Places) -> None:
    run(RUNS)
    table = pl.read_parquet(Path(str(places["tmp"]), "runs.parquet"))
    assert set(table["arm"]) == set(ARMS)


def test_report_is_of_the_named_version(run: Run) -> None:
    assert run(REPORT).value["lake"]["version"] == 8


# ---------------------------------------------------------------------- teachers and a dry run

LICENCES = command_line("licences --copyleft --json")
TEACHERS_LINE = command_line("teachers {bags} --weights {tmp} --json")
#: Two bare levels of the real slide, at 0.5 and 2.0 mpp.
PLAN = "ingest {tmp}/lake {slide} --dry-run --json "
PLAN_MPPS = command_line(PLAN + "--mpp 0.5 --mpp 2.0")
PLAN_SIDE = command_line(PLAN + "--mpp 0.5 --tile-px 512")
PLAN_NATIVE = command_line(PLAN + "{tmp}/plain.tiff --mpp 0.5 --tile-px native")
PLAN_MIXED = command_line(PLAN + "{tmp}/plain.tiff --mpp 0.5 --tile-px native --mix-codecs")
PLAN_PEN = command_line("ingest {tmp}/lake {tmp}/pen.tiff --mpp 2.0 --dry-run --json")
PLAN_NO_PEN = command_line(
    "ingest {tmp}/lake {tmp}/pen.tiff --mpp 2.0 --no-pen-veto --dry-run --json"
)
PLAN_STRIDE = command_line(PLAN + "--mpp 0.5 --stride 128")
PLAN_TISSUE = command_line(PLAN + "--mpp 0.5 --tissue-min 0.99")
PLAN_MASK = command_line(PLAN + "--mpp 0.5 --masks {tmp}/masks")
PLAN_EVERY = command_line(PLAN + "--mpp 0.5 --tissue none")
STRETCHED = "ingest {tmp}/lake {tmp}/stretched.tiff --mpp 0.5 --dry-run --json"
PLAN_STRETCHED = command_line(STRETCHED)
PLAN_ANISOTROPIC = command_line(STRETCHED + " --allow-anisotropic --icc")
PLAN_CASES = command_line("ingest {tmp}/lake {tmp}/slides.csv --dry-run --distinct-ids --json")
PLAN_ONLY = command_line("ingest {tmp}/lake {tmp}/in --dry-run --only b --only c --limit 1 --json")


def test_licences_with_conditions_are_listed(run: Run) -> None:
    packages = run(LICENCES).value["packages"]
    assert packages
    assert all(row["copyleft"] for row in packages)


def test_teachers_weights_are_looked_for_in_a_folder(run: Run, tmp_path: Path) -> None:
    weights = find_weights(CARDS["efficientnet_lite0"])
    assert weights is not None
    (tmp_path / "uni2_h.pth").write_bytes(weights.read_bytes())
    rows = {row["teacher"]: row for row in run(TEACHERS_LINE).value["teachers"]}
    assert rows["uni2_h"]["available"] is True
    assert rows["virchow2"]["available"] is False


def test_a_dry_run_shows_what_each_option_of_the_grid_does(run: Run, tmp_path: Path) -> None:
    command_worlds.left_half(tmp_path, REAL_SLIDE.stem, 2220, 2967)
    planned = run(PLAN_MPPS).value["tiles"]
    usual = planned["0.5"]
    assert 0 < planned["2.0"] < usual
    tiles = {
        line: run(line).value["tiles"]["0.5"]
        for line in (PLAN_SIDE, PLAN_STRIDE, PLAN_TISSUE, PLAN_MASK, PLAN_EVERY)
    }
    assert tiles[PLAN_SIDE] < usual < tiles[PLAN_STRIDE]
    assert tiles[PLAN_TISSUE] < usual < tiles[PLAN_EVERY] == 9 * 12
    assert tiles[PLAN_MASK] <= 6 * 12  # six columns of the nine
    assert not (tmp_path / "lake").exists()


def test_a_slide_without_jpeg_tiles_is_planned_if_codecs_may_be_mixed(
    run: Run, tmp_path: Path
) -> None:
    command_worlds.plain_tiff(tmp_path / "plain.tiff", mpp=0.5)
    (failed,) = run(PLAN_NATIVE, code=1).value["failed"]
    assert failed["slide"] == "plain"
    assert run(PLAN_MIXED).value["slides"] == 2


def test_tiles_under_pen_are_left_out_unless_they_are_asked_for(run: Run, tmp_path: Path) -> None:
    command_worlds.slide_with_pen(tmp_path / "pen.tiff")
    veto, every = (run(line).value["tiles"]["2.0"] for line in (PLAN_PEN, PLAN_NO_PEN))
    assert 0 < veto < every


def test_a_slide_of_two_mpps_is_planned_if_it_may_be(run: Run, tmp_path: Path) -> None:
    command_worlds.stretched_slide(tmp_path / "stretched.tiff")
    (failed,) = run(PLAN_STRETCHED, code=1).value["failed"]
    assert failed["slide"] == "stretched"
    assert run(PLAN_ANISOTROPIC).value["slides"] == 1


def test_slides_whose_names_differ_by_case_are_planned(run: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copy(REAL_SLIDE, tmp_path / f"{name}.svs")
    (tmp_path / "slides.csv").write_text("uri,slide_id\none.svs,s\ntwo.svs,S\n")
    assert run(PLAN_CASES).value["slides"] == 2


def test_only_and_limit_choose_slides(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in "abc":
        shutil.copy(REAL_SLIDE, tmp_path / "in" / f"{name}.svs")
    assert run(PLAN_ONLY).value["slides"] == 1
