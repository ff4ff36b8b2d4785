"""Jobs without a cluster: what travels, what comes back, and how they are listed."""

import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cluster import job_package, job_runner
from cluster.errors import ClusterError
from cluster.job_outputs import MARK, OutputLines
from cluster.job_package import packed_name, write_package
from cluster.job_record import JobRecord, job_table
from cluster.ray_jobs import JobRequest, JobServer, exit_code
from tests.conftest import ROOT


def packed(archive: Path) -> dict[str, bytes]:
    """Names and contents of an archive."""
    with zipfile.ZipFile(archive) as package:
        return {name: package.read(name) for name in package.namelist()}


# ---------------------------------------------------------------------- what travels


def test_named_files_and_folders_travel_and_nothing_hidden_does(tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    (masks / ".git").mkdir(parents=True)
    (masks / "deep").mkdir()
    for name in ("a.png", "deep/b.png", ".env", ".git/config"):
        (masks / name).write_text(name)
    (tmp_path / "labels.csv").write_text("slide_id\n")
    (tmp_path / "not-named.csv").write_text("secret")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c.png").write_text("c")
    (masks / "linked").symlink_to(tmp_path / "elsewhere")
    files = {"submitted/masks": masks, "submitted/labels.csv": tmp_path / "labels.csv"}
    assert write_package(files, tmp_path / "one.zip") == len("a.png" + "deep/b.png" + "slide_id\n")
    assert packed(tmp_path / "one.zip") == {
        "submitted/labels.csv": b"slide_id\n",
        "submitted/masks/a.png": b"a.png",
        "submitted/masks/deep/b.png": b"deep/b.png",
    }


def test_the_same_files_are_the_same_archive_at_any_time(tmp_path: Path) -> None:
    """Ray names an upload by its bytes; a new date in it would upload everything again."""
    digests = set()
    for number, mode in enumerate((0o600, 0o755)):
        file = tmp_path / f"{number}" / "labels.csv"
        file.parent.mkdir()
        file.write_text("slide_id\n")
        file.chmod(mode)
        write_package({"submitted/labels.csv": file}, tmp_path / f"{number}.zip")
        digests.add(hashlib.sha256((tmp_path / f"{number}.zip").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_what_is_too_large_or_hidden_or_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.csv").write_text("x" * 10)
    monkeypatch.setattr(job_package, "MOST_BYTES", 29)
    with pytest.raises(ClusterError, match=r"folder: more than 20,000 files or 2\.9e-05 MB"):
        write_package({"submitted/folder": folder}, tmp_path / "a.zip")
    monkeypatch.setattr(job_package, "MOST_BYTES", 30)
    assert write_package({"submitted/folder": folder}, tmp_path / "a.zip") == 30
    monkeypatch.setattr(job_package, "MOST_FILES", 2)
    with pytest.raises(ClusterError, match="more than 2 files"):
        write_package({"submitted/folder": folder}, tmp_path / "a.zip")
    (tmp_path / ".env").write_text("KEY=secret")
    with pytest.raises(ClusterError, match=r"\.env starts with a dot"):
        write_package({"submitted/.env": tmp_path / ".env"}, tmp_path / "a.zip")
    with pytest.raises(ClusterError, match=r"gone can't travel with the job: it is no file"):
        write_package({"submitted/gone": tmp_path / "gone"}, tmp_path / "a.zip")


def test_two_files_of_one_name_have_two_places() -> None:
    taken = {"submitted/labels.csv": Path("/one/labels.csv")}
    assert packed_name(Path("/one/labels.csv"), taken) == "submitted/labels.csv"
    assert packed_name(Path("/two/labels.csv"), taken) == "submitted/2/labels.csv"


# ---------------------------------------------------------------------- what comes back

WRITES = """
import pathlib, sys
print("before", pathlib.Path("submitted/in.csv").read_text())
out = pathlib.Path("maps"); (out / "deep").mkdir(parents=True)
(out / "a.png").write_bytes(bytes(range(256)) * 200)
(out / "deep" / "b.txt").write_text("b")
pathlib.Path("table.csv").write_text("x\\n1\\n")
print("{}")
sys.exit(int(sys.argv[1]))
"""


def job_log(folder: Path, *names: str, code: int = 0, writes: str = WRITES) -> tuple[int, str]:
    """Run a command as a job with outputs runs it; return its exit code and what it prints."""
    (folder / "submitted").mkdir(exist_ok=True)
    (folder / "submitted" / "in.csv").write_text("in")
    words = [*names, "--", sys.executable, "-c", writes, str(code)]
    done = subprocess.run(
        [sys.executable, "-m", "cluster.job_runner", *words],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_what_a_job_writes_comes_back_through_its_log(tmp_path: Path) -> None:
    code, log = job_log(tmp_path, "maps", "table.csv", "not-written", code=3)
    assert code == 3
    lines = log.splitlines()
    outputs = OutputLines({"maps": tmp_path / "my maps", "table.csv": tmp_path / "new" / "t.csv"})
    assert [line for line in lines if not outputs.takes(line)] == ["before in", "{}"]
    assert (tmp_path / "my maps" / "a.png").read_bytes() == bytes(range(256)) * 200
    assert (tmp_path / "my maps" / "deep" / "b.txt").read_text() == "b"
    assert (tmp_path / "new" / "t.csv").read_text() == "x\n1\n"
    assert outputs.written == [tmp_path / "my maps", tmp_path / "new" / "t.csv"]
    assert all(len(line) < 20_000 for line in lines)  # Ray cuts longer ones
    assert not list(Path(tmp_path).glob(".slidelake*"))


def test_outputs_without_a_place_stay_in_the_log_or_go_into_a_folder(tmp_path: Path) -> None:
    _, log = job_log(tmp_path, "table.csv")
    left = OutputLines({})
    assert [line for line in log.splitlines() if not left.takes(line)] == ["before in", "{}"]
    assert (left.left, left.written) == (["table.csv"], [])
    here = OutputLines({}, tmp_path / "here")
    for line in log.splitlines():
        here.takes(line)
    assert (tmp_path / "here" / "table.csv").read_text() == "x\n1\n"


def test_damaged_outputs_are_an_error_and_write_nothing(tmp_path: Path) -> None:
    _, log = job_log(tmp_path, "maps")
    marked = [line for line in log.splitlines() if line.startswith(MARK)]
    assert len(marked) >= 1
    outputs = OutputLines({"maps": tmp_path / "back"})
    with pytest.raises(ClusterError, match="is damaged"):
        outputs.takes(marked[0][:-7])
    flipped = marked[-1].replace('"data": "', '"data": "AAAA')
    with pytest.raises(ClusterError, match="did not come back whole"):
        outputs.takes(flipped)
    assert not (tmp_path / "back").exists()


def test_an_output_writes_nothing_outside_of_its_place(tmp_path: Path) -> None:
    """A log is what some program printed: a name in it leads nowhere but into the folder."""
    _, log = job_log(tmp_path, "table.csv")
    (marked,) = [line for line in log.splitlines() if line.startswith(MARK)]
    (tmp_path / "to").mkdir()
    for name in ("..", "../../etc/table.csv", "/etc/table.csv"):
        OutputLines({}, tmp_path / "to").takes(marked.replace('"table.csv"', f'"{name}"'))
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["table.csv"]
    assert not (tmp_path / "table.csv").exists()


def test_an_output_that_is_too_large_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job_runner, "MOST_BYTES", 10)
    monkeypatch.chdir(tmp_path)
    code = job_runner.run_command(["t"], ["sh", "-c", "echo 12345678 > t"])
    assert code == 1
    assert "t is larger than 1e-05 MB compressed, and was not" in capfd.readouterr().err


# ---------------------------------------------------------------------- requests and records


@pytest.mark.parametrize("wrong", ["", "a b", "../x", "-a", "x" * 101, "a/b"])
def test_an_id_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(ClusterError, match="letters, digits"):
        JobRequest(words=("true",), command="true", id=wrong)


@pytest.mark.parametrize("number", [0.0, -1.0, float("nan"), float("inf")])
def test_resources_of_no_size_are_refused(number: float) -> None:
    with pytest.raises(ClusterError, match="more than 0"):
        JobRequest(words=("true",), command="true", cpus=number)
    with pytest.raises(ClusterError, match="more than 0"):
        JobRequest(words=("true",), command="true", memory_gb=number)


def record(**changes: object) -> JobRecord:
    """A record of a job that has failed."""
    facts: dict[str, object] = {
        "id": "one", "state": "failed", "command": "info s3://lab/lake", "started": 1_000.0,
        "ended": 1_090.0, "exit_code": 2, "message": "m",
    }  # fmt: skip
    return JobRecord(**{**facts, **changes})  # type: ignore[arg-type]


def test_the_newest_job_is_listed_first_and_long_commands_are_cut() -> None:
    later = record(id="later", started=2_000.0, ended=None, exit_code=None, state="running",
                   command="mil " + "x" * 100)  # fmt: skip
    heading, first, second = job_table([record(), later]).splitlines()
    assert heading.split() == ["id", "state", "exit", "started", "took", "command"]
    assert first.startswith("later  running ")
    assert first.endswith("x...")
    assert re.search(r" 1 min 30 s +info s3://lab/lake$", second)
    assert heading.index("command") == second.index("info")
    assert later.seconds > 1e6
    assert (record().has_ended, later.has_ended) == (True, False)


def test_the_exit_code_is_the_commands_own_where_it_has_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code(record(state="succeeded", exit_code=0)) == 0
    assert exit_code(record(exit_code=3)) == 3
    for state, code in (("stopped", None), ("failed", None), ("failed", -9)):
        assert exit_code(record(state=state, exit_code=code)) == 1
    assert "one stopped: m" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "addresses", "same"),
    [
        ({"me"}, ["127.0.0.2"], True),
        ({"me"}, ["127.0.0.2", "192.0.2.7"], False),
        ({"other"}, ["127.0.0.1"], False),
        ({"me", "other"}, ["127.0.0.1"], False),
    ],
)
def test_a_cluster_is_this_machine_by_name_and_by_address(
    monkeypatch: pytest.MonkeyPatch, names: set[str], addresses: list[str], *, same: bool
) -> None:
    """A forwarded port has a loopback address, too, and two machines may have one name."""
    server = JobServer(address="http://127.0.0.1:8265", headers={})
    monkeypatch.setattr("socket.gethostname", lambda: "me")
    monkeypatch.setattr(JobServer, "_names_of_hosts", lambda _: names)
    monkeypatch.setattr(JobServer, "_addresses_of_nodes", lambda _: addresses)
    assert server.is_this_machine() is same
