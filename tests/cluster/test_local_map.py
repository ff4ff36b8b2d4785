"""Child processes in place of a Ray: results, errors, deaths, early ends, and when it is used."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster import ClusterError, DiedError, local_map, local_workers
from cluster.local.child_pool import ChildPool, usable_cores
from tests.conftest import ROOT
from tests.worlds import local_work


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delitem(sys.modules, "ray", raising=False)


def test_all_results_come_with_their_numbers() -> None:
    results = dict(local_map(local_work.squared, range(20), workers=3))
    assert results == {number: number**2 for number in range(20)}


def test_work_is_shared_by_processes_that_last() -> None:
    pids = [pid for _, pid in local_map(local_work.process, range(8), workers=2)]
    assert len(set(pids)) == 2
    assert os.getpid() not in pids


def test_an_error_keeps_its_type_and_has_the_child_s_trace() -> None:
    with pytest.raises(local_work.OwnError, match="no 3") as raised:
        list(local_map(local_work.refuse_three, range(5), workers=1))
    assert "refuse_three" in "".join(raised.value.__notes__)


def test_an_error_that_can_t_travel_is_told_in_words() -> None:
    with pytest.raises(RuntimeError, match="StubbornError: 7"):
        list(local_map(local_work.stubborn, [7], workers=1))


def test_threads_are_those_that_a_worker_reserves() -> None:
    assert dict(local_map(local_work.threads, [0], workers=1, num_cpus=3.5)) == {0: "3"}


def test_a_process_that_dies_once_is_started_again(tmp_path: Path) -> None:
    mark = tmp_path / "died"
    assert dict(local_map(local_work.die_once, [str(mark)], workers=1)) == {0: "done"}
    assert mark.exists()


def test_a_process_that_always_dies_is_an_error() -> None:
    with pytest.raises(ClusterError, match="died of SIGKILL, 4 times"):
        list(local_map(local_work.die, [0], workers=1))


def test_what_dies_is_one_job_and_no_other() -> None:
    pool = ChildPool("tests.worlds.local_work:plain_die_at_two", 2, tries=1)
    outcomes = dict(pool.map([(pickle.dumps((number,)), None) for number in range(5)]))
    assert isinstance(outcomes.pop(2), DiedError)
    results = {n: pickle.loads(out) for n, out in outcomes.items() if isinstance(out, bytes)}
    assert results == {0: 0, 1: 1, 3: 3, 4: 4}


def test_an_early_end_ends_all_processes() -> None:
    start = time.monotonic()
    results = local_map(local_work.slow_after_first, range(4), workers=2)
    _, pid = next(results)
    results.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 30
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_killed_owner_leaves_no_process() -> None:
    code = (
        "from cluster import local_map\n"
        "from tests.worlds import local_work\n"
        "for _, pid in local_map(local_work.slow_after_first, range(4), workers=2):\n"
        "    print(pid, flush=True)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    end = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()


def test_a_ray_that_is_named_or_needed_runs_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_workers(None) == usable_cores()
    assert local_workers(None, most=1) == 1
    assert local_workers(None, num_cpus=0.5, most=1) == 2
    assert local_workers("local") == local_workers("auto") == 0
    assert local_workers(None, num_gpus=0.5) == 0
    for name, text in (("RAY_ADDRESS", "10.0.0.1:6379"), ("SLIDELAKE_METRICS_PORT", "9100")):
        with monkeypatch.context() as patch:
            patch.setenv(name, text)
            assert local_workers(None) == 0


def test_a_demand_that_this_machine_has_no_room_for_is_refused() -> None:
    with pytest.raises(ClusterError, match="a worker of 4,096 CPUs fits on no node"):
        local_workers(None, num_cpus=4096)
