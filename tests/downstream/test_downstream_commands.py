"""The commands as a user runs them: what --json ends with, and that a kill changes no number."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import slidelake
from tests.conftest import ROOT
from tests.downstream.test_downstream_bags import PATIENTS, build, planted
from tests.worlds.command_lines import Output

KEYS = {"metrics", "folds", "patients", "slides", "lake_version", "run"}
COMMANDS = {
    "mil": ("--target", "tumour", "--model", "abmil", "--model", "linear", "--epochs", "8"),
    "survival": ("--time", "months", "--event", "dead", "--model", "cox", "--model", "abmil",
                 "--bins", "2", "--epochs", "8"),
}  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_up")]


def folder_of(path: Path) -> Path:
    """A lake and its labels."""
    build(path / "lake", planted())
    rows = [f"p{p:02d},{p % 2},{20 - 10 * (p % 2) + p / 10},{int(p > 1)}" for p in range(PATIENTS)]
    (path / "labels.csv").write_text("\n".join(["patient_id,tumour,months,dead", *rows, ""]))
    return path


def words(folder: Path, kind: str) -> list[str]:
    """The command."""
    return [
        kind, str(folder / "lake"), "--labels", str(folder / "labels.csv"),
        "--features", "good", "--features", "noise", "--folds", "3", "--json", *COMMANDS[kind],
    ]  # fmt: skip


def start(folder: Path, kind: str) -> subprocess.Popen[bytes]:
    """The command in a process of its own, with a Ray of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "slidelake", *words(folder, kind)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def finish(folder: Path, kind: str, output: Output) -> dict[str, Any]:
    """Return the last output of the command, which runs in this process and its Ray."""
    output.readouterr()
    slidelake.app(words(folder, kind), standalone_mode=False)
    printed: dict[str, Any] = json.loads(output.readouterr().out.strip().splitlines()[-1])
    return printed


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", COMMANDS)
def test_killed_and_resumed_it_says_the_same(kind: str, tmp_path: Path, capsys: Output) -> None:
    whole = finish(folder_of(tmp_path / "whole"), kind, capsys)
    assert set(whole) >= KEYS
    for metric in whole["metrics"].values():
        assert metric["low"] <= metric["estimate"] <= metric["high"]
    broken = folder_of(tmp_path / "broken")
    process = start(broken, kind)
    cells = broken / "lake" / "runs" / whole["run"] / "cells"
    for _ in range(1200):
        if cells.exists() and len(list(cells.iterdir())) >= 2:
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (cells.parent / "result.json").exists()
    assert 2 <= len(list(cells.iterdir())) < 12
    resumed = finish(broken, kind, capsys)
    assert resumed["metrics"] == whole["metrics"]
    assert resumed["comparisons"] == whole["comparisons"]
    assert resumed["run"] == whole["run"]
