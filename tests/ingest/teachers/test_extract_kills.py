"""An extract that is killed goes on, and ends in the same columns, bit for bit."""

import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from featurestore import Lake, open_lake, vacuum, verify
from ingest.teachers.ray_extract import extract
from tests.conftest import ROOT, TEACHERS
from tests.worlds.kills import kill, started, wait_for_work

NAMES = [f"{TEACHERS[0]}@S1", str(ROOT / "examples" / "own_encoder.py")]
COLUMNS = [f"{TEACHERS[0]}@S1", "colour-moments"]
CODE = """
import sys
import ingest.teachers.ray_extract as job
from ingest.teachers.work.unit_queue import SIZES, UnitSizes
job.COMMIT_S = 0.0  # a commit for each fragment, so that there is something to be between
job.HERE_TILES = 0  # on Ray, as large lakes are
SIZES["cpu"] = UnitSizes(first=10, least=10, most=10, grain=4)  # parts
job.extract(sys.argv[1], sys.argv[2:])
"""


def columns(lake: Lake) -> dict[str, bytes]:
    return {
        f"{slide} {mpp} {column}": lake.bag(slide, column, mpp=mpp).features.tobytes()
        for mpp in lake.config.mpps
        for slide in lake.tiles_of(mpp=mpp)["slide_id"]
        for column in COLUMNS
    }


def kill_extract(lake: Path, after_s: float) -> bool:
    """Kill an extract some time after it wrote its first column; whether it was still running."""
    process = started(["-c", CODE, str(lake), *NAMES])
    wait_for_work(process, lambda: data_files(lake))
    time.sleep(after_s)
    return kill(process, "group")


def data_files(lake: Path) -> int:
    return sum(1 for pattern in ("features/*/data/*", "parts/*") for _ in lake.glob(pattern))


@pytest.fixture
def copies(filled: Path, tmp_path: Path) -> tuple[Path, Path]:
    for name in ("killed", "whole"):
        shutil.copytree(filled, tmp_path / name)
    return tmp_path / "killed", tmp_path / "whole"


def check(killed: Path, whole: Path) -> None:
    assert not extract(str(killed), NAMES).failed
    assert not extract(str(whole), NAMES).failed
    assert columns(open_lake(killed)) == columns(open_lake(whole))
    assert verify(open_lake(killed)).ok
    vacuum(open_lake(killed))
    assert columns(open_lake(killed)) == columns(open_lake(whole))
    assert all(
        np.frombuffer(column, np.float16).any() for column in columns(open_lake(whole)).values()
    )


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.usefixtures("ray_up")
def test_an_extract_killed_again_and_again_ends_the_same(copies: tuple[Path, Path]) -> None:
    """Two kills: the first soon after a column is written, the other anywhere."""
    seed = random.randrange(1000)
    chance = random.Random(seed)
    killed = [kill_extract(copies[0], chance.uniform(0.0, most)) for most in (0.5, 4.0)]
    assert any(killed), seed
    check(*copies)
