"""The command as a user types it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import slidelake as front_door
from tests.conftest import REAL_SLIDE, ROOT
from tests.worlds.command_lines import Slidelake


def test_help_teaches(slidelake: Slidelake) -> None:
    text = slidelake("--help").stdout
    for name in ("demo", "ingest", "extract", "distill", "mil", "survival", "query", "submit"):
        assert name in text
    assert "slidelake ingest my-lake slides/ --mpp 0.5 --mpp 2.0" in " ".join(
        slidelake("ingest", "--help").stdout.split()
    )


def test_info_is_one_json_object(filled: Path, slidelake: Slidelake) -> None:
    info = json.loads(slidelake("info", filled, "--json").stdout)
    assert info["format"] == 1
    assert info["slides"] == {"ready": 7, "failed": 0}
    assert set(info["tiles"]) == {"0.5", "2.0"}
    assert {"teacher", "mpp", "dim", "tiles", "complete"} == set(info["features"][0])
    assert "7 slides ready" in slidelake("info", filled).stdout


def test_query_answers_and_hints(filled: Path, slidelake: Slidelake) -> None:
    sql = "SELECT slide_id, mpp FROM slides WHERE slide_id LIKE 'CMU%'"
    rows = json.loads(slidelake("query", filled, sql, "--json").stdout)["rows"]
    assert rows == [[REAL_SLIDE.stem, 0.499]]
    assert REAL_SLIDE.stem in slidelake("query", filled, sql).stdout
    wrong = slidelake("query", filled, "SELECT slideid FROM slides", code=2)
    assert "did you mean 'slide_id'" in wrong.stderr
    assert len(wrong.stderr.strip().splitlines()) == 1


def test_teachers_are_listed(filled: Path, slidelake: Slidelake) -> None:
    rows = json.loads(slidelake("teachers", "--json").stdout)["teachers"]
    assert {row["teacher"]: row["available"] for row in rows}["efficientnet_lite0"] is True
    assert {"dim", "mpp", "licence", "available"} <= set(rows[0])
    assert "1280 dims" in slidelake("teachers", filled).stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("info", "no-such-lake"), "does not exist"),
        (("ingest", "LAKE", "--mpp", "0.5"), "Missing argument"),
        (("ingest", "LAKE", "a.svs", "--mpp", "0.5", "--mpp", "0.7"), "do not nest"),
        (("extract", "FILLED", "--teacher", "uni3"), "no teacher 'uni3'"),
        (("distill", "FILLED", "--teacher", "x", "--recipe", "nope"), "no recipe 'nope'"),
        (("submit",), "give the command"),
        (("frobnicate",), "No such command"),
        (("mil", "FILLED", "--labels", "none.csv", "--target", "y", "--features", "x"), "none.csv"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(
    filled: Path, tmp_path: Path, slidelake: Slidelake, words: tuple[str, ...], says: str
) -> None:
    names = {"LAKE": str(tmp_path / "lake"), "FILLED": str(filled)}
    done = slidelake(*(names.get(word, word) for word in words), code=2)
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_process_of_its_own_answers_or_shows_where(filled: Path, tmp_path: Path) -> None:
    """Run the command as a process of its own, from any folder, with an error's traceback."""
    command = [sys.executable, "-m", "slidelake"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    runs = [
        subprocess.run(
            [*command, *words], cwd=tmp_path, env=environment, capture_output=True, check=False
        )
        for words in (("info", str(filled), "--json"), ("--debug", "info", "no-such-lake"))
    ]
    assert [run.returncode for run in runs] == [0, 2]
    assert json.loads(runs[0].stdout)["format"] == 1
    assert b"Traceback" in runs[1].stderr


def test_a_stopped_command_says_that_it_can_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["slidelake", "info", "my-lake"])
    monkeypatch.setattr("featurestore.open_lake", stop)
    with pytest.raises(SystemExit) as ended:
        front_door.main()
    assert ended.value.code == 130
    assert "stopped; what is committed stays" in capsys.readouterr().err
