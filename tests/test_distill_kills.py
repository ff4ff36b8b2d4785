"""A distillation that is killed goes on, and ends in the student of an undisturbed run."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, TEACHERS
from tests.kills import kill, started, wait_for_work

NAME = "tiny"


def command(lake: Path, workers: int) -> list[str]:
    return ["-m", "tests.distill_once", str(lake), NAME, str(workers)]


def run(lake: Path, workers: int) -> None:
    line = [sys.executable, *command(lake, workers)]
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True, timeout=400)


def kill_distill(lake: Path, workers: int, after_s: float, what: str) -> bool:
    """Kill the whole run, or one worker of it, some time after a checkpoint; whether it ran."""
    process = started(command(lake, workers))
    wait_for_work(process, lambda: stamps(lake))
    time.sleep(after_s)
    running = kill(process, what, worker=b"RayTrainWorker")
    assert what == "group" or process.returncode == 0
    return running


def stamps(lake: Path) -> list[int]:
    return [path.stat().st_mtime_ns for path in lake.glob("runs/distill-*/checkpoint.pt")]


def lines(lake: Path) -> list[dict[str, Any]]:
    (path,) = lake.glob("runs/distill-*/metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def check(killed: Path, whole: Path) -> None:
    for file in ("model", "heads"):
        ours, theirs = (
            load_file(x / f"students/{NAME}/{file}.safetensors") for x in (killed, whole)
        )
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)
    one, two = ([line for line in lines(x) if "losses" in line] for x in (killed, whole))
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for mine, theirs_line in zip(one, two, strict=True):
        assert mine["loss"] == pytest.approx(theirs_line["loss"], rel=1e-3)
    reports = [
        json.loads((x / f"students/{NAME}/report.json").read_text()) for x in (killed, whole)
    ]
    for teacher, found in reports[0]["fidelity"].items():
        assert found == pytest.approx(reports[1]["fidelity"][teacher], abs=1e-3)


@pytest.fixture
def copies(filled: Path, tmp_path: Path) -> tuple[Path, Path]:
    for name in ("killed", "whole"):
        shutil.copytree(filled, tmp_path / name)
    return tmp_path / "killed", tmp_path / "whole"


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "what"), [(1, "group"), (2, "group"), (2, "worker")])
def test_killed_at_random_it_ends_in_the_same_student(
    copies: tuple[Path, Path], workers: int, what: str
) -> None:
    killed, whole = copies
    random.seed(workers)
    hits = sum(kill_distill(killed, workers, random.uniform(0, 2), what) for _ in range(2))
    assert hits
    run(killed, workers)
    run(whole, workers)
    check(killed, whole)


@pytest.mark.slow
def test_the_commands_answer_in_json(filled: Path, tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    shutil.copytree(filled, lake)
    tiny = ["--architecture", "test_efficientnet", "--input-px", "32", "--batch-tiles", "16"]
    asked = ["--teacher", TEACHERS[0], "--epochs", "2", "--name", NAME, *tiny]
    found = answer("distill", str(lake), *asked, "--term", "contrast=0.1", "--json")
    keys = {"student", "recipe", "steps", "fidelity", "data_wait", "tiles_per_s"}
    assert keys <= set(found)
    assert (found["student"], found["recipe"]) == (NAME, "agglomerate")
    assert set(found["fidelity"]) == {TEACHERS[0]}
    assert {"cosine", "baseline"} <= set(found["fidelity"][TEACHERS[0]])
    judged = answer("evaluate", str(lake), "--student", NAME, "--tiles", "64", "--json")
    assert {one["kind"] for one in judged["embeddings"]} >= {"student", "teacher", "undistilled"}
    assert (lake / "runs" / judged["run"] / "report.html").exists()
    left = answer("export-student", str(lake), NAME, str(tmp_path / "out"), "--json")
    assert "model.safetensors" in left["files"]


def answer(*command: str) -> dict[str, Any]:
    """The JSON object that a command ends with."""
    line = [sys.executable, "-m", "slidelake", *command]
    done = subprocess.run(line, cwd=ROOT, check=True, capture_output=True, timeout=400)
    found: dict[str, Any] = json.loads(done.stdout.decode().splitlines()[-1])
    return found
