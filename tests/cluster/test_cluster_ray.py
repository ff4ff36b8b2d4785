"""`cluster` against a real Ray: a private one, a killed one, and a head that accepts jobs."""

import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

import cluster
from cluster import (
    ClusterError,
    quiet_ray_data,
    ray_map,
    ray_session,
    schedulable,
    shared_ray_session,
    submit,
)
from cluster.ray_jobs import JobServer, job_server
from cluster.ray_submit import JobOptions
from cluster.scratch import scratch_directory
from featurestore import LakeConfig, create_lake, open_lake
from tests.worlds.command_lines import command_line

CHECKOUT = Path(cluster.__file__).parent.parent
MARK = "SLIDELAKE_TEST_MARK"
PYTHON = (sys.executable, "-u", "-c")
# What `ray start` would otherwise take at fixed numbers, where others on this machine run Ray too.
PORTS = (
    "port",
    "ray-client-server-port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
    "runtime-env-agent-port",
)
SUBMIT = command_line("submit --address {head} --wait -- info {lake} --json")
SUBMIT_LATER = command_line(
    "submit --address {head} --no-wait --id {id} --shared {lakes} --entrypoint-cpus 1 "
    "--entrypoint-memory 0.1 -- query {lakes}/lake 'SELECT grade FROM mine ORDER BY grade' "
    "--table mine={table} --out {folder}/grades.csv"
)
SUBMIT_SCORE = command_line(
    "submit --address {head} --shared {lakes} -- --extend {laptop}/my_score.py score {lake} redness"
)
SUBMIT_ENCODER = command_line(
    "submit --address {head} --shared {lakes} -- extract {lake} --teacher {laptop}/my_encoder.py "
    "--mpp 2.0 --workers 1 --device cpu"
)
SCORE = """
from ingest.scores.score_table import SCORES, Score
SCORES["redness"] = Score(
    measures="mean of the red channel, 0 to 255",
    of_pixels=lambda tile_HWC: float(tile_HWC[..., 0].mean()),
)
"""
JOBS = command_line("jobs --address {head} --json")
JOB_LINES = command_line("jobs list --address {head}")
JOB_LOGS = command_line("jobs logs {id} --address {head} --follow --to {folder}/back --json")
JOB_LOGS_NOW = command_line("jobs logs {id} --address {head}")
JOB_STOP = command_line("jobs stop {id} --address {head} --json")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def _marked(mark: str) -> list[int]:
    """Ids of the living processes that inherited our mark."""
    variable = f"{MARK}={mark}".encode()
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z" and variable in (entry / "environ").read_bytes().split(b"\0"):
                    pids.append(int(entry.name))
            except OSError:
                continue  # it ended while we looked, or is not ours
    return pids


def _wait_until_gone(mark: str, *, seconds: float) -> list[str]:
    """Return the names of live processes, without Ray's HTTP agents, which need 80 s to end."""
    end = time.monotonic() + seconds
    while (left := _names(_marked(mark))) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def _names(pids: list[int]) -> list[str]:
    names = []
    for pid in pids:
        try:
            names.append((Path("/proc") / str(pid) / "comm").read_text().strip())
        except OSError:
            continue
    return [name for name in names if name not in {"ray::DashboardA", "ray::RuntimeEnv"}]


def _kill(mark: str) -> None:
    for pid in _marked(mark):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def test_jobs_that_share_a_session_start_one_ray_and_only_if_one_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []

    @contextmanager
    def started_here(num_cpus: int | None, *, worker_logs: bool) -> Iterator[None]:
        events.append("start")
        yield
        events.append("stop")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # the module, of whose name the door has a function
    monkeypatch.setattr(sys.modules["cluster.ray_session"], "_started_here", started_here)
    monkeypatch.setattr("ray.is_initialized", lambda: len(events) % 2 == 1)
    with shared_ray_session():
        events.extend([])
    assert events == []
    with shared_ray_session():
        for _ in range(2):
            with ray_session(ray_data=False):
                assert events == ["start"]
        assert events == ["start"]
    assert events == ["start", "stop"]
    for _ in range(2):
        with ray_session(ray_data=False):
            pass
    assert events == ["start", "stop"] * 3


@pytest.mark.usefixtures("ray_up")
class TestInALocalRay:
    def test_a_map_gives_each_result_with_its_index(self) -> None:
        assert sorted(ray_map(lambda x: x * x, [3, 1, 2])) == [(0, 9), (1, 1), (2, 4)]

    def test_results_come_as_they_finish(self) -> None:
        def nap(seconds: float) -> float:
            time.sleep(seconds)
            return seconds

        list(ray_map(nap, [0.0, 0.0]))  # both workers are up
        order = [index for index, _ in ray_map(nap, [1.0, 0.0, 0.0])]
        assert order[-1] == 0

    def test_a_map_takes_items_only_as_places_become_free(self) -> None:
        taken: list[int] = []

        def endless() -> Iterator[int]:
            while True:
                taken.append(len(taken))
                yield taken[-1]

        finished = ray_map(lambda x: x, endless(), max_in_flight=3)
        first_results = [next(finished) for _ in range(5)]
        finished.close()  # type: ignore[attr-defined]
        assert len(first_results) == 5
        assert len(taken) <= 3 + 5

    def test_a_map_raises_what_the_function_raised(self) -> None:
        def fail(x: int) -> int:
            if x == 2:
                msg = f"bad slide {x}"
                raise KeyError(msg)
            return x

        with pytest.raises(KeyError, match="bad slide 2") as caught:
            list(ray_map(fail, range(4)))
        assert type(caught.value) is KeyError
        assert "in fail" in caught.value.__notes__[0]

    def test_workers_find_our_packages_and_get_their_threads(self) -> None:
        def look(threads_here: int) -> tuple[str, str, int]:
            import torch

            import cluster.scratch

            torch_threads = torch.get_num_threads()
            torch.set_num_threads(threads_here)  # the next task must not inherit it
            return cluster.scratch.__file__, os.environ["OMP_NUM_THREADS"], torch_threads

        for num_cpus, threads in ((1.0, 1), (2.0, 2), (1.5, 1)):
            ((_, (file, omp, torch_threads)),) = ray_map(look, [7], num_cpus=num_cpus)
            assert Path(file).is_relative_to(CHECKOUT)
            assert (omp, torch_threads) == (str(threads), threads)

    def test_an_outer_session_is_used_and_left_up(self) -> None:
        with ray_session(num_cpus=7):
            assert list(ray_map(abs, [-1])) == [(0, 1)]
        assert list(ray_map(abs, [-2])) == [(0, 2)]

    def test_ray_data_is_quiet(self, capfd: pytest.CaptureFixture[str]) -> None:
        quiet_ray_data()
        import ray.data

        assert ray.data.range(3).map_batches(lambda batch: batch).count() == 3
        assert capfd.readouterr() == ("", "")

    def test_ray_says_that_a_job_may_hang_only_where_it_may(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An actor that takes all cores and is slow to start was said to hang."""
        import ray.data
        from ray.data._internal.execution import resource_manager

        class Slow:
            def __init__(self) -> None:
                time.sleep(1.5)

            def __call__(self, row: dict[str, int]) -> dict[str, int]:
                return row

        monkeypatch.setattr(resource_manager, "STARVATION_WARNING_DELAY_S", 0.0)
        logger = logging.getLogger(resource_manager.__name__)
        logger.addHandler(caplog.handler)
        rows = ray.data.from_items([{"a": 1}], override_num_blocks=1)
        pool = ray.data.ActorPoolStrategy(size=1)
        with schedulable(num_cpus=1.8):
            assert rows.map(Slow, compute=pool, num_cpus=1.8).take_all() == [{"a": 1}]
        assert "may hang forever" not in caplog.text
        with schedulable(num_cpus=100):
            logger.warning("Cluster resources are not enough to run any task from X. ... may hang")
        assert "may hang" in caplog.text
        logger.removeHandler(caplog.handler)

    @pytest.mark.parametrize("bad", [{"num_cpus": 0.0}, {"max_in_flight": 0}])
    def test_a_map_of_no_size_is_refused(self, bad: dict[str, int]) -> None:
        with pytest.raises(ClusterError, match="at least 1"):
            list(ray_map(abs, [1], **bad))


def test_cpus_of_a_running_cluster_cannot_be_chosen() -> None:
    code = (
        "from cluster import ray_session, ClusterError\n"
        "try:\n    ray_session(address='127.0.0.1:1', num_cpus=2).__enter__()\n"
        "except ClusterError as err:\n    print(err)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    assert "num_cpus=2 was given for the running Ray at 127.0.0.1:1" in shown.stdout


@pytest.mark.slow
def test_a_killed_driver_takes_its_ray_with_it_and_says_nothing(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    code = (
        "from cluster import ray_session, ray_map\n"
        "import sys, time\n"
        "with ray_session(num_cpus=1, ray_data=False):\n"
        "    assert list(ray_map(abs, [-1])) == [(0, 1)]\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(600)\n"
    )
    env = {**os.environ, MARK: mark, "PYTHONPATH": str(CHECKOUT)}
    env.pop("RAY_ADDRESS", None)
    # A job runs the `python` that its head finds first.
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    with (
        (tmp_path / "err").open("w+") as err,
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=err,
        ) as driver,
    ):
        try:
            assert driver.stdout is not None
            assert driver.stdout.readline() == b"ready\n", (tmp_path / "err").read_text()
            assert len(_marked(mark)) > 4
            driver.kill()
            driver.wait()
            assert _wait_until_gone(mark, seconds=20) == []
        finally:
            _kill(mark)
    assert (tmp_path / "err").read_text() == ""


@dataclass(frozen=True, kw_only=True)
class Head:
    address: str
    gcs: str
    token: str


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait_for_jobs(head: Head, process: subprocess.Popen[bytes], log: Path) -> None:
    headers = {"Authorization": f"Bearer {head.token}"}
    for _ in range(600):
        try:
            with urlopen(Request(f"{head.address}/api/jobs/", headers=headers), timeout=5):
                return
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
        if process.poll() is not None:
            break
    pytest.fail(f"the head did not come up: {log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Yield a head of our own on ports of its own; others on this machine run Ray too."""
    mark, token = uuid.uuid4().hex, uuid.uuid4().hex
    ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
    log = tmp_path_factory.mktemp("head") / "log"
    env = {**os.environ, MARK: mark, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    env.pop("RAY_ADDRESS", None)
    # A job runs the `python` that its head finds first, and this checkout wherever it works.
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    env["PYTHONPATH"] = str(CHECKOUT)
    with scratch_directory() as temp_dir, log.open("wb") as out:
        command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"]
        command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", "--num-cpus=2"]
        command += ["--node-ip-address=127.0.0.2", f"--temp-dir={temp_dir}"]
        command += ["--object-store-memory=268435456", "--disable-usage-stats"]
        command += [f"--{option}={port}" for option, port in ports.items()]
        with subprocess.Popen(command, env=env, stdout=out, stderr=out) as process:
            head = Head(
                address=f"http://127.0.0.1:{ports['dashboard-port']}",
                gcs=f"127.0.0.2:{ports['port']}",
                token=token,
            )
            try:
                _wait_for_jobs(head, process, log)
                yield head
            finally:
                _kill(mark)


@pytest.fixture
def _known_token(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", head.token)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    # Ray itself would let this one override the address that we give.
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")


@pytest.mark.usefixtures("_known_token")
class TestWithAHead:
    @pytest.mark.slow
    def test_a_job_prints_runs_ray_and_gives_its_exit_code(
        self, head: Head, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code = (
            "import sys; sys.path.insert(0, sys.argv[1])\n"
            "from cluster import ray_map, ray_session\n"
            "with ray_session(ray_data=False):\n"
            "    print(sorted(ray_map(abs, [-1, -2])))\n"
            "print('a b', sys.argv[2]); sys.exit(3)\n"
        )
        lines: list[str] = []
        args = [str(CHECKOUT), "it's $HOME"]
        assert (
            submit(args, address=head.address, on_line=lines.append, program=(*PYTHON, code)) == 3
        )
        assert "[(0, 1), (1, 2)]" in lines
        assert lines[-1] == "a b it's $HOME"
        assert capsys.readouterr().out == ""

    def test_slidelake_submit_info_prints_what_info_prints(
        self, head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lake = create_lake(tmp_path / "lake", LakeConfig(mpps=(0.5, 2.0)))
        answer = SUBMIT.run(capsys, {"head": head.address, "lake": tmp_path / "lake"})
        (line,) = [line for line in answer.stdout.splitlines() if line.startswith("{")]
        printed = json.loads(line)
        assert printed.pop("upkeep")["advice"] == []
        assert printed == lake.info()

    def test_ctrl_c_stops_following_and_not_the_job(
        self, head: Head, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        code = (
            "import sys, time, pathlib; print('started')\n"
            "time.sleep(2); pathlib.Path(sys.argv[1]).touch()\n"
        )

        def interrupt(_: str) -> None:
            raise KeyboardInterrupt

        done = tmp_path / "done"
        exit_code = submit(
            [str(done)], address=head.address, on_line=interrupt, program=(*PYTHON, code)
        )
        errors = capsys.readouterr().err
        assert exit_code == 130
        assert "goes on" in errors
        assert re.search(
            rf"slidelake jobs logs raysubmit_\w+ --follow --address {head.address}`, "
            rf"stop it with `slidelake jobs stop raysubmit_\w+ --address {head.address}`",
            errors,
        )
        for _ in range(100):
            if done.exists():
                return
            time.sleep(0.1)
        pytest.fail("the job was stopped too")

    def test_without_following_it_gives_the_id(self, head: Head) -> None:
        lines: list[str] = []
        exit_code = submit(
            ["0"], address=head.address, follow=False, on_line=lines.append, program=("sleep",)
        )
        assert exit_code == 0
        assert len(lines) == 1
        assert lines[0].startswith("raysubmit_")

    def test_files_travel_and_come_back_and_jobs_are_listed_followed_and_stopped(
        self,
        head: Head,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """As from a laptop: the cluster is not this machine, but for a folder that both see."""
        monkeypatch.setattr(JobServer, "is_this_machine", lambda _: False)
        create_lake(tmp_path / "lakes" / "lake", LakeConfig())
        (tmp_path / "laptop").mkdir()
        (tmp_path / "laptop" / "clinical.csv").write_text("slide_id,grade\na,2\nb,1\n")
        places = {
            "head": head.address, "id": f"grades-{uuid.uuid4().hex[:8]}", "folder": tmp_path,
            "lakes": tmp_path / "lakes", "table": tmp_path / "laptop" / "clinical.csv",
        }  # fmt: skip
        sent = SUBMIT_LATER.run(capsys, places)
        assert sent.stdout == f"{places['id']}\n"
        assert f"slidelake jobs logs {places['id']} --follow --address" in sent.stderr
        assert "slidelake jobs stop" in sent.stderr
        again = SUBMIT_LATER.run(capsys, places, code=2)
        assert "has a job of this id already; give another --id" in again.stderr
        (tmp_path / "laptop" / "clinical.csv").unlink()  # the laptop may go
        followed = JOB_LOGS.run(capsys, places).value
        assert (followed["state"], followed["exit_code"]) == ("succeeded", 0)
        assert followed["written"] == [f"{tmp_path}/back/grades.csv"]
        assert (tmp_path / "back" / "grades.csv").read_text() == "grade\n1\n2\n"
        assert not [line for line in followed["lines"] if "slidelake-output" in line]
        listed = JOBS.run(capsys, places).value["jobs"]
        (ours,) = [job for job in listed if job["id"] == places["id"]]
        assert ours["command"].startswith("query ")
        assert "mine=submitted/clinical.csv" in ours["command"]
        assert str(tmp_path / "laptop") not in json.dumps(ours)
        assert JOB_STOP.run(capsys, places).value["stopped"] is False
        assert str(places["id"]) in JOB_LINES.run(capsys, places).stdout
        assert "has written grades.csv; --to DIR" in JOB_LOGS_NOW.run(capsys, places).stderr

    @pytest.mark.slow
    def test_own_python_files_travel_to_the_command_and_to_its_workers(
        self,
        head: Head,
        lake_copy: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A score by `--extend`, and an encoder; the files are on the laptop alone."""
        monkeypatch.setattr(JobServer, "is_this_machine", lambda _: False)
        laptop = tmp_path / "laptop"
        laptop.mkdir()
        (laptop / "my_score.py").write_text(SCORE)
        shutil.copy(CHECKOUT / "examples" / "own_encoder.py", laptop / "my_encoder.py")
        places = {"head": head.address, "lakes": lake_copy.parent, "lake": lake_copy,
                  "laptop": laptop}  # fmt: skip
        scored = SUBMIT_SCORE.run(capsys, places)
        assert "tiles were scored" in scored.stdout
        SUBMIT_ENCODER.run(capsys, places)
        lake = open_lake(lake_copy)
        tiles = lake.tiles(mpp=2.0).select("redness").collect()
        assert tiles["redness"].null_count() == 0
        assert lake.identity("colour-moments", mpp=2.0)["card"] == "colour-moments"
        assert lake.features("colour-moments", mpp=2.0).collect().height == tiles.height

    def test_a_job_is_stopped_and_an_unknown_one_is_said(
        self, head: Head, capsys: pytest.CaptureFixture[str]
    ) -> None:
        name = f"sleeper-{uuid.uuid4().hex[:8]}"
        submit(
            ["600"],
            address=head.address,
            follow=False,
            program=("sleep",),
            options=JobOptions(id=name),
        )
        places = {"head": head.address, "id": name}
        stopped = JOB_STOP.run(capsys, places).value
        assert (stopped["stopped"], stopped["state"]) == (True, "stopped")
        assert stopped["command"] == "600"
        places["id"] = "no-such-job"
        unknown = JOB_STOP.run(capsys, places, code=2).stderr
        assert "has no job 'no-such-job'; it has: " in unknown
        assert name in unknown

    def test_the_head_of_this_machine_is_known_as_such(self, head: Head) -> None:
        assert job_server(head.address).is_this_machine()

    def test_a_wrong_token_is_one_clear_error(
        self, head: Head, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
        with pytest.raises(ClusterError, match="refuses our token"):
            submit(["info"], address=head.address)

    def test_a_missing_token_is_one_clear_error(
        self, head: Head, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(ClusterError, match="wants a token, and none was found"):
            submit(["info"], address=head.address)
