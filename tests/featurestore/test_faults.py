"""What a lake survives: SIGKILL anywhere, two committers at once, a full disk."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from featurestore import Lake, open_lake, vacuum, verify
from tests.conftest import ROOT
from tests.worlds import fault_worker
from tests.worlds.kills import kill
from tests.worlds.small_lake import add_slides, contents

#: In each of two tests; hundreds were tried, and more can be asked for.
KILLS = int(os.environ.get("SLIDELAKE_KILLS", "6"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Return the contents in the end of the lake of `fault_worker`."""
    return contents(fault_worker.run(str(tmp_path_factory.mktemp("whole") / "lake")))


def start(lake: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.worlds.fault_worker", str(lake)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def kill_after(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Kill a worker some time after it has begun; whether it was still at work."""
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    time.sleep(seconds)
    running = kill(process, "driver")
    errors = process.stderr.read().decode()
    process.stdout.close()
    process.stderr.close()
    assert "Error" not in errors, errors
    return running


def kill_at_work(folder: Path, kills: int, seed: int) -> list[Path]:
    """Kill workers at random moments of their work and look at the lake after each; the lakes.

    A worker that had ended before its kill is not counted: its lake is done, and the next one
    begins another.
    """
    chance = random.Random(seed)
    hit, lakes = 0, [folder / "lake0"]
    while hit < kills:
        if kill_after(start(lakes[-1]), chance.uniform(0.0, 1.5)):
            hit += 1
        else:
            lakes.append(folder / f"lake{len(lakes)}")
        for lake in lakes[-2:]:
            if (lake / "lake.json").exists():
                verdict = verify(open_lake(lake))
                assert verdict.ok, verdict.as_dict()
    return lakes


def check_that_they_end_the_same(lakes: list[Path], undisturbed: dict[str, object]) -> None:
    for lake in lakes:
        done = fault_worker.run(str(lake))
        assert verify(done).ok
        assert contents(done) == undisturbed
        vacuum(done)
        assert contents(open_lake(lake)) == undisturbed
        assert verify(open_lake(lake)).ok


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(2))
def test_killed_and_killed_it_ends_the_same(
    tmp_path: Path, undisturbed: dict[str, object], seed: int
) -> None:
    check_that_they_end_the_same(kill_at_work(tmp_path, KILLS, seed), undisturbed)


@pytest.mark.slow
def test_two_committers_at_once_end_with_each_slide_once(
    tmp_path: Path, undisturbed: dict[str, object]
) -> None:
    workers = [start(tmp_path / "lake") for _ in range(2)]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors.decode()
    lake = open_lake(tmp_path / "lake")
    assert verify(lake).ok
    assert contents(lake) == undisturbed


LIMITED = """
import resource, signal, sys
from featurestore import open_lake
from tests.worlds.small_lake import add_slides
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
lake = open_lake(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
add_slides(lake, {"big": 4000})
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [20_000, 60_000, 4_000_000, 8_000_000])
def test_write_that_does_not_fit_leaves_the_lake_as_it_was(small: Lake, limit: int) -> None:
    """A file that may not grow stands for a full disk: the same error of the same calls."""
    before = contents(small)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, small.uri, str(limit)],
        cwd=ROOT,
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert verify(open_lake(small.uri)).ok
    if done.returncode:
        assert b"too large" in done.stderr, done.stderr.decode()
        tables = contents(open_lake(small.uri))
        assert {k: v for k, v in tables.items() if k != "slides"} == {
            k: v for k, v in before.items() if k != "slides"
        }
    full = add_slides(open_lake(small.uri), {"big": 4000})
    assert verify(full).ok
    assert full.info()["tiles"] == {"0.5": 4008, "2.0": 4008}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can't be mounted here")
    try:
        lake = fault_worker.run(str(disk / "lake"))
        before = contents(lake)
        filler = disk / "filler"
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(b"x" * 4_000_000)
        with pytest.raises(OSError, match=r"(?i)no space left"):
            add_slides(lake, {"more": 200})
        assert verify(open_lake(lake.uri)).ok
        filler.unlink()
        after = add_slides(open_lake(lake.uri), {"more": 200})
        assert verify(after).ok
        assert after.info()["tiles"]["0.5"] == 200 + sum(fault_worker.SLIDES.values()) + 11 - 6
        assert set(before) == set(contents(after))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
