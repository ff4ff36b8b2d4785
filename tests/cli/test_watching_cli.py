"""`--on-failure`, `slidelake status` and `slidelake estimate` from the command line."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from commands.options.failure_report import VARIABLE
from featurestore import Lake
from tests.worlds.command_lines import CommandLine, Output, command_line

KEEP = "import sys; open(sys.argv[1], 'ab').write(sys.stdin.buffer.read() + b'\\n')"

HOOK = "--on-failure '{hook}'"
PLAN = command_line(f"ingest {{tmp}}/new {{tmp}}/bad --dry-run {HOOK} --json")
PLAN_GOOD = command_line("ingest {tmp}/new {slide} --mpp 2.0 --dry-run --json")
EXTRACT = command_line(f"extract {{tmp}}/none --teacher efficientnet_lite0 {HOOK}")
BUILD = command_line(f"build {{tmp}}/new {{tmp}}/bad --teacher no-such-teacher {HOOK}")
DISTILL = command_line(f"distill {{tmp}}/none --teacher good {HOOK}")
WRONG = command_line("ingest {tmp}/new {tmp}/bad --on-failure no-such-program-here")
STATUS = command_line("status {lake} --last 1 --json")
STATUS_TEXT = command_line("status {lake}")
ESTIMATE = command_line(
    "estimate {lake} --teacher uni2_h --slides 300000 --mpp 0.5 --gpu h100 "
    "--rates {tmp}/rates.toml --prices {tmp}/prices.toml --json"
)
ESTIMATE_TEXT = command_line("estimate {lake} --teacher uni2_h --teacher virchow2")


@pytest.fixture
def places(tmp_path: Path, small: Lake) -> Mapping[str, object]:
    """A small lake, a folder whose only slide is none, and a hook that keeps its reports."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "text.svs").write_text("this is no slide")
    script = tmp_path / "hook.py"
    script.write_text(KEEP)
    hook = f"{sys.executable} {script} {tmp_path / 'reports'}"
    from tests.conftest import REAL_SLIDE

    return {"tmp": tmp_path, "lake": small.uri, "hook": hook, "slide": REAL_SLIDE}


def reports(tmp_path: Path) -> list[dict[str, Any]]:
    path = tmp_path / "reports"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_failed_slides_are_reported_with_their_reasons(
    places: Mapping[str, object], tmp_path: Path, capsys: Output
) -> None:
    answer = PLAN.run(capsys, places, code=1)
    assert answer.value["failed"]
    (report,) = reports(tmp_path)
    assert (report["command"], report["exit_code"], report["failed"]) == ("ingest", 1, 1)
    assert report["lake"] == f"{tmp_path}/new"
    assert "text" in report["failures"][0]
    assert {"host", "pid", "started", "seconds"} <= report.keys()


@pytest.mark.parametrize(
    ("line", "command", "error"),
    [
        (EXTRACT, "extract", "LakeMissingError"),
        (BUILD, "build", "TeacherError"),
        (DISTILL, "distill", "LakeMissingError"),
    ],
)
def test_an_error_is_reported_and_stays_the_command_s_own(
    places: Mapping[str, object],
    tmp_path: Path,
    capsys: Output,
    line: CommandLine,
    command: str,
    error: str,
) -> None:
    answer = line.run(capsys, places, code=2)
    (report,) = reports(tmp_path)
    assert (report["command"], report["error_type"]) == (command, error)
    assert report["error"] in answer.stderr
    assert "exit_code" not in report


def test_a_success_calls_nobody_and_the_variable_is_a_hook_too(
    places: Mapping[str, object],
    tmp_path: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, str(places["hook"]))
    PLAN_GOOD.run(capsys, places)
    assert reports(tmp_path) == []
    CommandLine(text="ingest {tmp}/new {tmp}/bad --dry-run --json").run(capsys, places, code=1)
    assert len(reports(tmp_path)) == 1


def test_a_hook_that_fails_changes_no_exit_code(
    places: Mapping[str, object], capsys: Output
) -> None:
    hook = f"{sys.executable} -c 'exit(9)'"
    answer = PLAN.run(capsys, {**places, "hook": hook}, code=1)
    assert answer.value["failed"]


def test_a_hook_that_can_t_be_called_is_refused_before_the_work(
    places: Mapping[str, object], tmp_path: Path, capsys: Output
) -> None:
    answer = WRONG.run(capsys, places, code=2)
    assert "'no-such-program-here' is no program that can be started here" in answer.stderr
    assert not (tmp_path / "new").exists()


def test_no_secret_is_in_a_report(
    places: Mapping[str, object],
    tmp_path: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_SECRET_KEY", "needle-5f2c0d9b")
    line = CommandLine(text=f"extract {{tmp}}/needle-5f2c0d9b --teacher x {HOOK}")
    line.run(capsys, places, code=2)
    text = (tmp_path / "reports").read_text()
    assert "needle-5f2c0d9b" not in text
    assert "***" in text


def test_status_tells_what_is_pending_and_what_failed(
    places: Mapping[str, object], capsys: Output, small: Lake
) -> None:
    rows = small.committer.register(
        [{"slide_id": name, "uri": f"{name}.svs"} for name in ("c", "d", "e")]
    )
    small.committer.fail([{**row, "reason": f"no mpp in {row['slide_id']}"} for row in rows[:2]])
    small.committer.add_teacher(0.5, "good", 4, {"card": "good"})
    status = STATUS.run(capsys, places).value
    assert status["slides"] == {"ready": 2, "pending": 1, "failed": 2}
    assert status["failed"] == 2
    assert len(status["failures"]) == len(status["commits"]) == 1
    text = STATUS_TEXT.run(capsys, places).stdout
    assert "writes now   none" in text
    assert "2 ready, 1 pending, 2 failed" in text
    assert "d: no mpp in d" in text
    assert "good at 0.5 mpp lacks 8 tiles" in text
    assert "mpp0.5" in text


def test_estimate_goes_by_own_tables_and_prints_what_it_assumes(
    places: Mapping[str, object], tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "rates.toml").write_text("[measured.uni2_h]\nh100 = 1000\n")
    (tmp_path / "prices.toml").write_text("[gpu_hour]\nh100 = 2\n")
    answer = ESTIMATE.run(capsys, places).value
    assert (answer["slides"], answer["gpu"], list(answer["tiles"])) == (300_000, "h100", ["0.5"])
    (need,) = answer["teachers"]
    hours = answer["tiles"]["0.5"]["low"] / 1000 / 3600
    assert need["gpu_hours"]["low"] == pytest.approx(hours)
    assert answer["prices"]["uni2_h"]["low"] == pytest.approx(2 * hours)
    text = ESTIMATE_TEXT.run(capsys, places).stdout
    assert text.startswith("2 slides, by 2 slides with tiles in")
    assert "assumed:" in text
    assert "TFLOP/s of one a100: not measured" in text
