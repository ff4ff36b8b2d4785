"""Every command that reads a table refuses near ids, and accepts them with --distinct-ids."""

from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

import slidelake
from distill.errors import DistillError
from distill.evaluate.tile_labels import read_labels
from downstream import CohortError
from downstream.probes.probe_labels import read_tile_labels
from featurestore import Lake, LakeConfig, create_lake
from featurestore.annotations import set_patients
from tests.worlds.small_lake import add_slides

NEAR = "differ by case only"


@pytest.fixture(scope="module")
def lake_of(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Return a lake of the slides a and b, without features."""
    uri = tmp_path_factory.mktemp("near") / "lake"
    lake = create_lake(uri, LakeConfig(tile_px=256, mpps=(0.5,)))
    return add_slides(lake, {"a": 4, "b": 4})


def outcome(*words: str) -> tuple[int, str]:
    run = CliRunner().invoke(slidelake.app, list(words))
    return run.exit_code, run.output + str(run.exception)


COMMANDS = {
    "mil": "--labels TABLE --target y --features x",
    "survival": "--labels TABLE --time t --event e --features x",
    "probe": "--labels TABLE --target y --features x",
    "distill": "--teacher x --slides TABLE",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_refuse_near_ids(lake_of: Lake, tmp_path: Path, command: str) -> None:
    table = tmp_path / "t.csv"
    table.write_text("slide_id,y,t,e,x,y0\na,1,1,1,0,0\nA,0,2,0,0,0\nb,0,2,0,0,0\n")
    words = [command, lake_of.uri, *COMMANDS[command].replace("TABLE", str(table)).split()]
    code, text = outcome(*words)
    assert code != 0
    assert f"'A' (row 3) and 'a' (row 2) {NEAR}" in text
    assert NEAR not in outcome(*words, "--distinct-ids")[1]


def test_ingest_refuses_near_ids(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("uri,slide_id\none.svs,A\ntwo.svs,a\n")
    words = ["ingest", str(tmp_path / "lake"), str(tmp_path / "m.csv"), "--dry-run"]
    assert f"'A' (row 2) and 'a' (row 3) {NEAR}" in outcome(*words)[1]
    text = outcome(*words, "--distinct-ids")[1]
    assert NEAR not in text
    assert "A would fail" in text


def test_labels_of_evaluate_refuse_near_ids(lake_of: Lake, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for rows in ("A,0,0,s\nb,0,0,t\n", "a,0,0,s\nb,0,0,S\n", "a,0,0,s\nA,256,0,t\n"):
        path.write_text(f"slide_id,x,y,class\n{rows}")
        with pytest.raises(DistillError, match=NEAR):
            read_labels(str(path), lake_of)
        assert read_labels(str(path), lake_of, distinct_ids=True)[0].height == 2


def test_labels_of_tiles_refuse_slides_near_those_of_the_lake(
    lake_of: Lake, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("slide_id,patient_id,x,y,class\nA,1,0,0,s\nb,2,0,0,t\n")
    with pytest.raises(CohortError, match=f"slides: 'A' and 'a' of the lake {NEAR}"):
        read_tile_labels(lake_of, path, "class", mpp=0.5)


@pytest.mark.parametrize(
    ("table", "pair"),
    [
        ("slide_id,grade\nA,1\nb,2\n", "slides: 'A' and 'a' of the lake"),
        ("slide_id,x,y,grade\nA,0,0,1\nb,0,0,2\n", "slides: 'A' and 'a' of the lake"),
        ("patient_id,age\np1,60\nP2,70\n", "patients: 'p1' and 'P1' of the lake"),
    ],
)
def test_annotate_refuses_ids_near_those_of_the_lake(tmp_path: Path, table: str, pair: str) -> None:
    lake = create_lake(tmp_path / "lake", LakeConfig(tile_px=256, mpps=(0.5,)))
    lake = add_slides(lake, {"a": 4, "b": 4})
    set_patients(lake, pl.DataFrame({"slide_id": ["a", "b"], "patient_id": ["P1", "P2"]}))
    path = tmp_path / "t.csv"
    path.write_text(table)
    words = ["annotate", lake.uri, str(path), "--name", "mine", "--json"]
    code, text = outcome(*words)
    assert code != 0
    assert f"{pair} {NEAR}" in text
    assert lake.refreshed().annotations() == {}
    assert outcome(*words, "--distinct-ids")[0] == 0
    assert list(lake.refreshed().annotations()) == ["mine"]


def test_patients_near_those_of_other_slides_are_refused(tmp_path: Path) -> None:
    lake = create_lake(tmp_path / "lake", LakeConfig(tile_px=256, mpps=(0.5,)))
    lake = add_slides(lake, {"a": 4, "b": 4})
    set_patients(lake, pl.DataFrame({"slide_id": ["a"], "patient_id": ["P1"]}))
    path = tmp_path / "t.csv"
    path.write_text("slide_id,patient_id\nb,p1\n")
    words = ["annotate", lake.uri, str(path), "--name", "patients", "--json"]
    assert f"patients: 'p1' and 'P1' of the lake {NEAR}" in outcome(*words)[1]
    path.write_text("slide_id,patient_id\na,p1\nb,p1\n")  # both slides are of p1 then
    assert outcome(*words, "--replace")[0] == 0
