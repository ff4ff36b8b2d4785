"""A crash or a hang in other code costs its own job and is named; nothing outlives its owner."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import DiedError, Isolated
from tests.conftest import ROOT


@pytest.fixture
def isolated() -> Iterator[Isolated]:
    other = Isolated("tests.worlds.isolated_work:work")
    yield other
    other.close()


def test_one_process_takes_job_after_job(isolated: Isolated) -> None:
    first = isolated.call("a", limit_s=60)
    assert isolated.call("a", limit_s=60) == first != f"a in {os.getpid()}"


@pytest.mark.parametrize(
    ("job", "limit_s", "says"),
    [("crash", 60, "died of SIGSEGV, 2 times"), ("hang", 0.5, "took longer than 0 s, 2 times")],
)
def test_what_crashes_or_hangs_is_named_and_the_next_job_is_done(
    isolated: Isolated, job: str, limit_s: float, says: str
) -> None:
    with pytest.raises(DiedError, match=says):
        isolated.call(job, limit_s=limit_s)
    assert isolated.call("next", limit_s=60).startswith("next in ")


def test_what_dies_once_is_tried_again(isolated: Isolated, tmp_path: Path) -> None:
    assert isolated.call("once", str(tmp_path / "tried"), limit_s=60).startswith("once in ")


def test_process_ends_with_a_killed_owner() -> None:
    code = (
        "from cluster import Isolated\n"
        "other = Isolated('tests.worlds.isolated_work:work')\n"
        "print(other.call('a', limit_s=60).split()[-1], flush=True)\n"
        "other.call('hang', limit_s=600)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout is not None
        child = Path(f"/proc/{int(owner.stdout.readline())}")
        assert child.exists()
        owner.kill()
    for _ in range(100):
        if not child.exists():
            return
        time.sleep(0.1)
    pytest.fail("the process outlives its owner")
