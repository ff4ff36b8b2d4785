"""Slides that an ingest has not cut yet: commands that come after say so, and do not end well."""

import json
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

import slidelake
from downstream.cohorts.cohort import CohortError, patient_table
from downstream.probes.probe_labels import read_tile_labels
from featurestore import Lake, LakeConfig, create_lake
from tests.conftest import ROOT
from tests.worlds.small_lake import add_slides

ENCODER = str(ROOT / "examples" / "own_encoder.py")
LABELS = pl.DataFrame({"slide_id": ["a", "b", "c"], "patient_id": ["1", "2", "3"], "y": [0, 1, 1]})


@pytest.fixture
def pending(tmp_path: Path) -> Lake:
    """Return a lake whose three slides are registered and wait to be cut."""
    lake = create_lake(tmp_path / "lake", LakeConfig(mpps=(0.5,)))
    lake.committer.register([{"slide_id": s, "uri": f"{s}.svs"} for s in "abc"])
    return lake.refreshed()


def test_extract_of_pending_slides_is_no_success(pending: Lake) -> None:
    done = CliRunner().invoke(slidelake.app, ["extract", pending.uri, "--teacher", ENCODER])
    assert done.exit_code == 1, done.output
    assert "3 slides pending: slidelake ingest goes on with them" in done.output
    assert "no slide is ready" in done.output
    words = ["extract", pending.uri, "--teacher", ENCODER, "--json"]
    answer = json.loads(CliRunner().invoke(slidelake.app, words).output)
    assert (answer["ready"], answer["pending"]) == (0, 3)


def test_extract_with_nothing_left_to_do_is_a_success_unless_slides_wait(tmp_path: Path) -> None:
    lake = add_slides(create_lake(tmp_path / "lake", LakeConfig(mpps=(0.5,))), {"a": 0})
    words = ["extract", lake.uri, "--teacher", ENCODER]
    done = CliRunner().invoke(slidelake.app, words)
    assert (done.exit_code, "pending" in done.output) == (0, False)
    lake.committer.register([{"slide_id": "b", "uri": "b.svs"}])
    done = CliRunner().invoke(slidelake.app, words)
    assert (done.exit_code, "1 slide pending" in done.output) == (1, True)


def test_studies_name_pending_slides(pending: Lake, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"no labelled slide is ready: 3 slides pending, .*a, b"):
        patient_table(pending.slides(), LABELS, ["y"])
    some = add_slides(pending, {"a": 3, "b": 2})
    cohort = patient_table(some.slides(), LABELS, ["y"])
    assert cohort.slide_ids == ["a", "b"]
    assert "1 slide pending, labelled and left out: c; slidelake ingest goes" in cohort.notes[-1]
    slides = some.slides().select("slide_id", "state").with_columns(patient_id=pl.lit("3"))
    by_patient = patient_table(slides, LABELS.drop("slide_id"), ["y"])
    assert "1 slide pending, labelled and left out: c" in by_patient.notes[-1]


def test_probes_name_pending_slides(pending: Lake, tmp_path: Path) -> None:
    rows = ["slide_id,patient_id,x,y,tissue", "a,1,0,0,gut", "b,2,0,0,fat", "c,3,0,0,fat"]
    table = tmp_path / "tiles.csv"
    table.write_text("\n".join(rows) + "\n")
    with pytest.raises(CohortError, match="no labelled slide is ready: 3 slides pending"):
        read_tile_labels(pending, table, "tissue", mpp=0.5)
    some = add_slides(pending, {"a": 3, "b": 2})
    labels = read_tile_labels(some, table, "tissue", mpp=0.5)
    assert labels.notes[-1].startswith("1 slide pending, labelled and left out: c")


def test_mil_and_survival_over_pending_slides_end_with_the_cause(
    pending: Lake, tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    LABELS.with_columns(time=pl.Series([1.0, 2.0, 3.0])).write_csv(table)
    for words in (
        ["mil", pending.uri, "--labels", str(table), "--target", "y", "--features", "t"],
        ["survival", pending.uri, "--labels", str(table), "--time", "time", "--event", "y",
         "--features", "t"],
    ):  # fmt: skip
        done = CliRunner().invoke(slidelake.app, words)
        assert done.exit_code != 0
        assert "no labelled slide is ready: 3 slides pending" in str(done.exception)
