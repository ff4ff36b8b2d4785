"""Jobs on one machine without a Ray: the same content as on Ray, and no Ray is started."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from featurestore import open_lake
from tests.conftest import REAL_SLIDE, ROOT

#: Runs `slidelake` in a process of its own, and prints whether Ray was imported.
RUN = """
import sys
import slidelake
try:
    slidelake.main()
finally:
    print("ray" in sys.modules, file=sys.stderr)
"""


def run(*words: object, code: int = 0) -> tuple[dict[str, Any], list[str]]:
    """Return a command's answer, and the lines on stderr."""
    plain = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, words), "--json"],
        cwd=ROOT,
        env={**plain, "PYTHONPATH": str(ROOT), "SLIDELAKE_PROGRESS": "json"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert lines.pop() == "False", "Ray was imported"
    return json.loads(done.stdout.splitlines()[-1]), lines


def test_an_ingest_of_one_machine_needs_no_ray(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.svs").symlink_to(REAL_SLIDE)
    (folder / "text.svs").write_text("no slide")
    answer, lines = run("ingest", tmp_path / "lake", folder, "--mpp", "1.0", code=1)
    assert answer["ready"] == 2
    assert [one["slide"] for one in answer["failed"]] == ["text"]
    assert answer["tiles"] == {"1.0": 34}  # 17 of each, as the docs of `ingest` say
    events = [json.loads(line) for line in lines]
    slides = {one["slide"]: one for one in events if one["event"] == "slide"}
    assert {name: one["state"] for name, one in slides.items()} == {
        "a": "ready", "b": "ready", "text": "failed",
    }  # fmt: skip
    assert slides["text"]["class"] == "unsupported"
    commits = [one for one in events if one["event"] == "commit"]
    assert sum(one["slides"] for one in commits) == 2
    assert open_lake(tmp_path / "lake").info()["slides"]["ready"] == 2


@pytest.mark.slow
def test_lakes_cut_with_and_without_ray_are_equal(tmp_path: Path, ray_up: None) -> None:
    from featurestore import LakeConfig
    from ingest.ray_ingest import ingest

    config = LakeConfig(mpps=(1.0,))
    ingest(str(tmp_path / "ray"), [str(REAL_SLIDE)], config)  # the Ray of this process
    run("ingest", tmp_path / "here", REAL_SLIDE, "--mpp", "1.0")
    shards = [
        {
            path.name: path.read_bytes()
            for path in sorted((tmp_path / name / "tiles").rglob("*.tar"))
        }
        for name in ("ray", "here")
    ]
    assert shards[0] == shards[1]
    tables = [
        open_lake(tmp_path / name).tiles(mpp=1.0).collect().sort("tile_id")
        for name in ("ray", "here")
    ]
    assert tables[0].equals(tables[1])


@pytest.mark.slow
def test_studies_and_trainings_on_one_machine_need_no_ray(
    filled: Path, cohort: Path, tmp_path: Path
) -> None:
    import shutil

    import polars as pl

    lake = tmp_path / "lake"
    shutil.copytree(filled, lake)
    slides = pl.read_csv(cohort).select("slide_id", patient_id="slide_id")
    label = pl.int_range(pl.len()) % 2  # three of each: two remain to be split beside a fold's test
    slides.with_columns(label=label).write_csv(tmp_path / "l.csv")
    study, _ = run(
        *("mil", lake, "--labels", tmp_path / "l.csv", "--target", "label", "--mpp", "2.0"),
        *("--features", "efficientnet_lite0", "--model", "mean", "--epochs", "1", "--folds", "3"),
        *("--patients-from", "labels"),
    )
    assert study["folds"] == 3
    report, lines = run(
        *("distill", lake, "--teacher", "efficientnet_lite0", "--name", "here", "--mpp", "2.0"),
        *("--architecture", "test_efficientnet", "--input-px", "32", "--epochs", "1"),
        *("--batch-tiles", "16"),
    )
    assert report["student"] == "here"
    notes = [one["text"] for one in map(json.loads, lines) if one["event"] == "note"]
    here = [text for text in notes if text.endswith("on cpu, in a process of this machine")]
    assert len(here) == 1
    assert here[0].startswith("1 worker with ")
    assert (lake / "students" / "here" / "model.safetensors").exists()
