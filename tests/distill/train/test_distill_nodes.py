"""Distillation on a cluster of nodes of several sizes, whose head computes nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from featurestore import open_lake
from tests.conftest import ROOT, TEACHERS


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_stage_runs_on_workers_of_the_size_that_is_asked_for(lake_copy: Path) -> None:
    command = [sys.executable, "-m", "tests.worlds.mixed_nodes", str(lake_copy), *TEACHERS]
    environ = {k: x for k, x in os.environ.items() if not k.startswith("RAY_")}
    environ |= {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environ, cwd=ROOT, timeout=580
    )
    assert done.returncode == 0, done.stderr[-4000:]
    sizes = json.loads(done.stdout.strip().splitlines()[-1])
    assert (sizes["small"], sizes["mixed"], sizes["threads"]) == ([2, 1.0], [1, 2.0], 2)
    assert "a worker of 3 CPUs fits on no node (nodes up" in sizes["refused"]
    lake = open_lake(lake_copy)
    assert sizes["tiles"] == lake.info()["tiles"]["2.0"]
    assert "mixed" in lake.teachers(mpp=2.0)
