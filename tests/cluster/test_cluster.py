"""What of `cluster` needs no Ray: the door, progress, tokens, addresses, scratch directories."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import cluster
from cluster import is_quiet, progress, progress_of_stages, quiet_progress
from cluster.environment import patched_environ
from cluster.errors import ClusterError
from cluster.ray_jobs import JobRequest, _address_of
from cluster.ray_session import _check_reachable, ray_session
from cluster.ray_submit import submit
from cluster.ray_token import auth_headers, check_address
from cluster.scratch import object_store_bytes, ram_bytes, scratch_directory

CLUSTER = Path(cluster.__file__).parent
GIB = 2**30


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that a test moves on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("RAY_", "SLIDELAKE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_the_door_imports_no_ray() -> None:
    code = "import sys, cluster; print([m for m in ('ray', 'rich', 'torch') if m in sys.modules])"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=CLUSTER.parent, capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "[]"


def test_plain_progress_is_a_line_now_and_then_and_one_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLIDELAKE_PROGRESS", "plain")
    out, clock = io.StringIO(), Clock()
    with progress("ingest", total=4, unit="slides", stream=out, clock=clock) as bar:
        for _ in range(4):
            clock.now += 3.0
            bar.advance(1, tiles=600)
        bar.note("slide 7: no tissue")
    assert out.getvalue().splitlines() == [
        "ingest: 2/4 slides (0.3/s), 1,200 tiles (200/s), 6 s",
        "ingest: 4/4 slides (0.3/s), 2,400 tiles (200/s), 12 s",
        "ingest: slide 7: no tissue",
        "ingest: 4/4 slides (0.3/s), 2,400 tiles (200/s), 12 s, done",
    ]


def test_progress_after_a_restart_counts_only_this_run_s_speed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLIDELAKE_PROGRESS", "plain")
    out, clock = io.StringIO(), Clock()
    with progress("ingest", total=100, initial=90, every_s=0, stream=out, clock=clock) as bar:
        for _ in range(6):
            clock.now += 2.0
            bar.advance(1)
    assert out.getvalue().splitlines()[5] == "ingest: 96/100 items (0.5/s), 12 s, about 8 s left"


def lefts(seconds: list[float], weights: list[float] | None = None) -> list[float | None]:
    """Return the estimated times left after each result; the last weight is of unfinished work."""
    clock = Clock()
    work = None if weights is None else sum(weights)
    with progress("x", total=len(seconds) + 1, work=work, stream=io.StringIO(), clock=clock) as bar:
        guesses = []
        for number, needed in enumerate(seconds):
            clock.now += needed
            bar.advance(1, work=None if weights is None else weights[number])
            guesses.append(bar.snapshot().left_s)
    return guesses


def test_time_left_is_not_guessed_before_it_is_grounded() -> None:
    """A start of 30 s tells nothing about the pace, and neither do a few results in a moment."""
    assert lefts([30.0, 2, 2, 2, 2]) == [None] * 5
    assert lefts([0.1] * 8) == [None] * 8
    guesses = lefts([30.0] + [2.0] * 9)
    assert guesses[:5] == [None] * 5
    assert guesses[5:] == pytest.approx([10, 8, 6, 4, 2])


def test_time_left_goes_by_what_units_weigh() -> None:
    """Ten small slides of 2 s, then one of 100 times the bytes: it was said to take 2 s."""
    guesses = lefts([2.0] * 10, [1.0] * 10 + [100.0])
    assert guesses[9] == pytest.approx(200)
    assert lefts([2.0] * 10)[9] == pytest.approx(2)


def test_bytes_are_shown_in_units_that_are_not_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIDELAKE_PROGRESS", "plain")
    out, clock = io.StringIO(), Clock()
    with progress("ingest", total=2, unit="slides", stream=out, clock=clock) as bar:
        clock.now += 8.0
        bar.advance(1, bytes=83_000)
    assert out.getvalue().splitlines()[0] == "ingest: 1/2 slides (0.1/s), 83.0 kB (10.4 kB/s), 8 s"


def test_progress_that_an_exception_ends_says_stopped() -> None:
    out = io.StringIO()
    with pytest.raises(OSError, match="disk full"), progress("ingest", stream=out, clock=Clock()):
        raise OSError("disk full")  # noqa: EM101
    assert json.loads(out.getvalue())["event"] == "stopped"


def test_without_a_terminal_progress_is_one_object_a_line() -> None:
    out, clock = io.StringIO(), Clock()
    with progress("ingest", total=4, unit="slides", every_s=2, stream=out, clock=clock) as bar:
        clock.now += 2.0
        bar.advance(1, tiles=10)
        bar.note("hello")
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["progress", "note", "done"]
    assert events[0] == {
        "event": "progress",
        "title": "ingest",
        "unit": "slides",
        "done": 1,
        "total": 4,
        "counters": {"tiles": 10},
        "elapsed_s": 2.0,
        "left_s": None,
    }
    assert events[1] == {"event": "note", "title": "ingest", "text": "hello"}


def test_a_terminal_gets_a_bar_and_stdout_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    out = Terminal()
    with progress("ingest", total=2, unit="slides", stream=out) as bar:
        bar.advance(1, tiles=1200)
        bar.note("slide [7]: no tissue")
        bar.advance(1, tiles=4)
    text = out.getvalue()
    assert "slide [7]: no tissue\n" in text
    assert "2/2 slides" in text
    assert "1,204 tiles" in text
    assert "done" in text
    assert capsys.readouterr().out == ""


def test_a_stage_is_named_beside_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    out, clock = io.StringIO(), Clock()
    with progress_of_stages("build", "ingest", "extract"):
        for stage in ("ingest", "extract"):
            with progress(stage, total=2, unit="things", stream=out, clock=clock) as bar:
                bar.note("hello")
                bar.advance(2)
        monkeypatch.setenv("SLIDELAKE_PROGRESS", "plain")
        with progress("scores", total=1, stream=out, clock=clock) as bar:
            bar.note("further")
    *lines, note, plain = out.getvalue().splitlines()
    events = [json.loads(line) for line in lines]
    assert [(one["event"], one["title"], one["stage"]) for one in events] == [
        (event, "build", stage) for stage in ("ingest", "extract") for event in ("note", "done")
    ]
    assert note == "build scores: further"
    assert plain.startswith("build scores: 0/1 items")
    with progress("ingest", stream=out, clock=clock):
        pass
    assert "build" not in out.getvalue().splitlines()[-1]


def test_a_terminal_shows_all_stages_of_a_command_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    out = Terminal()
    with progress_of_stages("build", "ingest", "extract"):
        with progress("ingest", total=2, unit="slides", stream=out) as bar:
            bar.advance(2)
        first = out.getvalue()
    assert re.search("ingest.*extract.*waits", first, re.DOTALL)
    last = out.getvalue().rpartition("ingest")[2]  # as it was drawn last
    assert re.search("2/2 slides.*done.*extract.*nothing to do", last, re.DOTALL)
    assert "waits" not in last


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_progress_shows_nothing_in_this_process_and_those_that_it_starts(
    monkeypatch: pytest.MonkeyPatch, *, terminal: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal() if terminal else io.StringIO()
    with quiet_progress():
        assert is_quiet()
        assert os.environ["SLIDELAKE_PROGRESS"] == "none"
        with (
            progress_of_stages("build", "ingest"),
            progress("ingest", total=1, stream=out) as bar,
        ):
            bar.note("slide7 failed")
            bar.advance(1)
    assert out.getvalue() == ""
    assert not is_quiet()


def test_an_unknown_view_lists_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIDELAKE_PROGRESS", "fancy")
    with pytest.raises(ClusterError, match=r"'fancy'.*auto, bar, plain, json, none"), progress("x"):
        pass


def test_environment_is_put_back_also_what_was_written_inside() -> None:
    with patched_environ({"HOME": "/nowhere", "SLIDELAKE_NEW": "1"}, keep="SLIDELAKE_KEPT"):
        assert os.environ["HOME"] == "/nowhere"
        os.environ["SLIDELAKE_KEPT"] = "written inside"
    assert os.environ["HOME"] != "/nowhere"
    assert not {"SLIDELAKE_NEW", "SLIDELAKE_KEPT"} & set(os.environ)


def test_scratch_is_private_and_removed_and_a_dead_one_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.scratch._LONGEST_ROOT_BYTES", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead = tmp_path / "slray-deadbeef"
    (dead / "r").mkdir(parents=True)
    (dead / "lock").touch()
    foreign = tmp_path / "slray-no-lock"
    foreign.mkdir()
    with scratch_directory() as first, scratch_directory() as second:
        assert not dead.exists()
        assert foreign.exists()
        assert first.parent.is_dir()
        assert second.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in tmp_path.iterdir()] == ["slray-no-lock"]


def test_scratch_refuses_a_path_too_long_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.scratch._LONGEST_ROOT_BYTES", 2)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ClusterError, match="set TMPDIR"), scratch_directory():
        pass


@pytest.mark.parametrize(
    ("ram", "shm", "expected"),
    [
        (4 * GIB, 4 * GIB, GIB // 2),
        (64 * GIB, 32 * GIB, 2 * GIB),
        (64 * GIB, GIB, int(GIB * 0.9)),
        (GIB, GIB, GIB // 4),
        (64 * GIB, 64 * 2**20, GIB // 4),
    ],
)
def test_object_store_is_bounded(ram: int, shm: int, expected: int) -> None:
    assert object_store_bytes(ram_bytes=ram, shm_free_bytes=shm) == expected


def test_ram_is_not_more_than_the_machine_has() -> None:
    assert 2**28 < ram_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_entrypoint_quotes_what_a_shell_would_change() -> None:
    args = ["query", "s3://bucket/a lake", "SELECT count(*) FROM tiles WHERE x > 'a'; $HOME"]
    line = JobRequest(words=("echo", *args), command="").entrypoint
    shown = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout
    assert shown == " ".join(args) + "\n"


def test_address_is_the_argument_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _address_of(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # where drivers go, not jobs
    assert _address_of(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "https://ray.example/")
    assert _address_of(None) == "https://ray.example"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265")
    assert _address_of(None) == "http://head:8265"
    assert _address_of("localhost:9") == "http://localhost:9"


def test_token_is_looked_up_where_ray_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert auth_headers() == {}
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("from-home\n")
    assert auth_headers() == {"Authorization": "Bearer from-home"}
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "gone"))
    with pytest.raises(ClusterError, match=r"RAY_AUTH_TOKEN_PATH.*gone"):
        auth_headers()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from-env")
    assert auth_headers() == {"Authorization": "Bearer from-env"}
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert auth_headers() == {}


@pytest.mark.parametrize("address", ["ray://head:10001", "ftp://head", "http://", "head:8265"])
def test_what_is_no_dashboard_address_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match="not one of a Ray dashboard"):
        check_address(address, has_token=True)


def test_an_open_cluster_on_the_network_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"10\.0\.0\.1.*set\s+RAY_AUTH_TOKEN"):
        submit(["info", "lake"], address="http://10.0.0.1:8265")
    for fine in ("http://127.0.0.1:8265", "http://[::1]:8265", "http://localhost:1", "https://a.b"):
        check_address(fine, has_token=False)
    check_address("http://10.0.0.1:8265", has_token=True)


def test_submit_needs_something_to_run() -> None:
    with pytest.raises(ClusterError, match="nothing to submit"):
        submit([])


def test_submit_says_when_nobody_answers() -> None:
    with pytest.raises(ClusterError, match=r"no Ray dashboard answers at http://127\.0\.0\.1:9;"):
        submit(["info", "lake"], address="http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:8265", "not one of a Ray cluster"),
        ("head", "not one of a Ray cluster"),
        ("127.0.0.1:9", "no Ray answers at 127.0.0.1:9 .*refused"),
        ("ray://127.0.0.1:9", "no Ray answers at ray://127.0.0.1:9 .*refused"),
    ],
)
def test_a_session_does_not_wait_for_nobody(address: str, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        _check_reachable(address)


def test_raycluster_yaml_is_bounded_closed_and_asks_for_a_token() -> None:
    spec = yaml.safe_load((CLUSTER / "kuberay" / "raycluster.yaml").read_text())["spec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    assert spec["authOptions"]["mode"] == "token"
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        assert {"cpu", "memory", "ephemeral-storage"} <= set(resources["limits"])
        env = {entry["name"]: entry for entry in container["env"]}
        assert env["RAY_AUTH_MODE"]["value"] == "token"
        assert env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["key"] == "auth_token"
    assert {group["groupName"] for group in spec["workerGroupSpecs"]} == {"cpu", "gpu"}
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_ray_version_is_the_same_in_every_file() -> None:
    spec = yaml.safe_load((CLUSTER / "kuberay" / "raycluster.yaml").read_text())["spec"]
    floor = (CLUSTER.parent / "pyproject.toml").read_text().split("ray[data,default,train]>=")[1]
    assert spec["rayVersion"].startswith(floor.split('"')[0])


@pytest.mark.parametrize(("bound", "cores"), [({0, 3}, 2), (set(range(8)), None)])
def test_a_private_ray_takes_the_cores_that_the_process_is_bound_to(
    monkeypatch: pytest.MonkeyPatch, bound: set[int], cores: int | None
) -> None:
    """As SLURM binds a job to some cores of a node; Ray itself would count all eight."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: bound)
    starts: list[dict[str, object]] = []
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **options: starts.append(options))
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with ray_session(ray_data=False):
        pass
    assert [start["num_cpus"] for start in starts] == [cores]
