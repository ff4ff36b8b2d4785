"""The whole way, small: what `make demo` does, twice, and killed in between."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from featurestore import open_lake
from tests.conftest import ROOT

CODE = """
import json, sys
from pathlib import Path
from examples.demo import DemoSettings, run_demo

if __name__ == "__main__":
    settings = DemoSettings(
        patients=8, slides=9, width_px=1024, height_px=768, mpps=(0.5,), epochs=1, folds=2
    )
    run_demo(Path(sys.argv[1]), settings)
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    script = folder.parent / "small_demo.py"
    script.write_text(CODE)
    log = (folder.parent / "log").open("ab")
    with log:
        return subprocess.Popen(
            [sys.executable, str(script), str(folder)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=log,
            start_new_session=True,
        )


def finish(folder: Path) -> None:
    process = start(folder)
    assert process.wait(timeout=580) == 0, (folder.parent / "log").read_text()[-4000:]


def check(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    features = {"efficientnet_lite0", "efficientnet_lite1", "student"}
    assert {"cohort", "ingest", "extract", "distill", "mil", "survival"} <= set(report["stages"])
    assert set(report["fidelity"]) == features - {"student"}
    assert report["synthetic"] is True
    for kind in ("mil", "survival"):
        assert set(report[kind]) == features
        for measure in report[kind].values():
            assert 0 <= measure["low"] <= measure["estimate"] <= measure["high"] <= 1
    info = report["lake"]
    assert info["slides"] == {"ready": 10, "failed": 0}
    assert {(f["teacher"], f["mpp"]) for f in info["features"]} == {
        (name, 0.5) for name in features
    }
    assert all(measure["complete"] for measure in info["features"])
    assert (folder / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_demo_killed_at_random_goes_on_and_is_not_done_twice(tmp_path: Path) -> None:
    """Two kills at random moments, a run to the end, and one that finds all done."""
    folder = tmp_path / "lake"
    seed = random.randrange(1000)
    chance = random.Random(seed)
    for most in (20, 40):
        process = start(folder)
        time.sleep(chance.uniform(10, most))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finish(folder)
    check(folder)
    before, version = (folder / "report.json").read_text(), open_lake(folder).version
    finish(folder)
    after = json.loads((folder / "report.json").read_text())
    assert after["stages"] == json.loads(before)["stages"]
    assert open_lake(folder).version == version
