"""A distillation that is killed goes on, and ends in the student of an undisturbed run."""

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.worlds.distill_once import train
from tests.worlds.kills import kill, started, wait_for_work

NAME, WORKERS = "tiny", 2


def command(lake: Path, workers: int) -> list[str]:
    return ["-m", "tests.worlds.distill_once", str(lake), NAME, str(workers)]


def kill_distill(
    lake: Path, workers: int, after_s: float, target: str, worker: bytes = b"RayTrainWorker"
) -> bool:
    """Kill the whole run, or one worker of it, some time after a checkpoint; whether it ran."""
    process = started(command(lake, workers))
    wait_for_work(process, lambda: stamps(lake))
    time.sleep(after_s)
    running = kill(process, target, worker=worker)
    assert target == "group" or process.returncode == 0
    return running


def stamps(lake: Path) -> list[int]:
    return [path.stat().st_mtime_ns for path in lake.glob("runs/distill-*/checkpoint.pt")]


def lines(lake: Path) -> list[dict[str, Any]]:
    (path,) = lake.glob("runs/distill-*/metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def check(killed: Path, whole: Path) -> None:
    for file in ("model", "heads"):
        ours, undisturbed = (
            load_file(x / f"students/{NAME}/{file}.safetensors") for x in (killed, whole)
        )
        assert ours.keys() == undisturbed.keys()
        for name, tensor in undisturbed.items():
            torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4)
    one, two = ([line for line in lines(x) if "losses" in line] for x in (killed, whole))
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for line, undisturbed_line in zip(one, two, strict=True):
        assert line["loss"] == pytest.approx(undisturbed_line["loss"], rel=1e-3)
    reports = [
        json.loads((x / f"students/{NAME}/report.json").read_text()) for x in (killed, whole)
    ]
    for teacher, fidelity in reports[0]["fidelity"].items():
        assert fidelity == pytest.approx(reports[1]["fidelity"][teacher], abs=1e-3)


@pytest.fixture(scope="module")
def whole(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with the student of an undisturbed run of two workers, on the Ray that is up."""
    lake = tmp_path_factory.mktemp("whole") / "lake"
    shutil.copytree(filled, lake)
    train(str(lake), NAME, WORKERS)
    return lake


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("target", ["group", "worker"])
def test_killed_at_random_it_ends_in_the_same_student(
    filled: Path, whole: Path, tmp_path: Path, target: str
) -> None:
    """A worker's death is mended by the run itself; all others by the next run.

    The runs that are killed have a Ray of their own, which dies with a group.
    """
    killed = tmp_path / "killed"
    shutil.copytree(filled, killed)
    seed = random.randrange(1000)
    hit = kill_distill(killed, WORKERS, random.Random(seed).uniform(0, 2), target)
    if target == "group":
        assert hit, seed
        train(str(killed), NAME, WORKERS)
    check(killed, whole)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_on_one_machine_goes_on_when_its_process_dies(
    filled: Path, tmp_path: Path
) -> None:
    """One worker runs in a child process, without a Ray; one that dies is started again."""
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    for lake in (killed, undisturbed):
        shutil.copytree(filled, lake)
    assert kill_distill(killed, 1, 0.2, "worker", worker=b"cluster.local.child_process")
    process = started(command(undisturbed, 1))
    assert process.wait() == 0
    check(killed, undisturbed)
