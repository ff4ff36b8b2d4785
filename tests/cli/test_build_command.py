"""`slidelake build`, `ls`, and what the command itself answers: version and completion."""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from featurestore import Lake, LakeConfig, open_lake
from ingest.ray_ingest import IngestResult
from ingest.teachers.ray_extract import ExtractResult
from tests.conftest import REAL_SLIDE, ROOT, TEACHERS
from tests.worlds.command_lines import Output, Slidelake, command_line

LAKE = "{tmp}/lake {slide} "
CUT = (
    "--mpp 0.5 --tile-px 128 --stride 64 --tissue-min 0.2 --mix-codecs --mpp-override 0.4 "
    "--allow-anisotropic --icc --masks {tmp} --tissue cells --no-pen-veto --only a --limit 2 "
    "--retry-failed --replace --since 1d --check-content --slide-timeout 3 --distinct-ids "
)
RUN = (
    "--teacher efficientnet_lite0 --weights {tmp} --precision bfloat16 --engine torch "
    "--where 'pen < 0.1' --share 0.5 --fov nearest --device cpu --workers 3 --cpus-per-worker 2 "
    "--gpus-per-worker 0 "
)
SHARED = "--address 127.0.0.1:1 --auto-vacuum "
BUILD = command_line(f"build {LAKE}{CUT}{RUN}{SHARED}--quiet --json")
INGEST = command_line(f"ingest {LAKE}{CUT}{SHARED}--json")
EXTRACT = command_line(f"extract {{tmp}}/lake {RUN}{SHARED}--json")
PLAN = command_line(
    "build {tmp}/lake {slide} --teacher efficientnet_lite0 --teacher uni2_h --mpp 2.0 --dry-run "
    "--json"
)
PLAN_TEXT = command_line("build {tmp}/lake {slide} --teacher uni2_h --mpp 2.0 --dry-run")
LS = command_line("ls {filled} --json")
LS_TEXT = command_line("ls {filled}")
LS_AT = command_line("ls {filled} --at 1 --json")
VERSION = command_line("--version")
SHOW = command_line("--show-completion")
INSTALL = command_line("--install-completion")


class Recorder:
    """A stage of a build that keeps what it is called with."""

    def __init__(self, outcome: object) -> None:
        self.outcome, self.calls = outcome, list[dict[str, Any]]()

    def __call__(self, *arguments: object, **options: object) -> object:
        """Keep the call, and return the outcome."""
        self.calls.append({"arguments": [_plain(one) for one in arguments], **options})
        return self.outcome


def _plain(argument: object) -> object:
    return list(argument) if isinstance(argument, tuple) else argument


@pytest.fixture
def places(tmp_path: Path) -> Mapping[str, object]:
    """A slide and a new folder."""
    return {"tmp": tmp_path, "slide": REAL_SLIDE}


def test_build_gives_each_stage_what_its_own_command_gives_it(
    places: Mapping[str, object], capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = Recorder(IngestResult(ready=1, tiles={"0.5": 3}, sheet="page"))
    extract = Recorder(ExtractResult(ready=1))
    for module in ("ingest.lake_building", "ingest.ray_ingest"):
        monkeypatch.setattr(f"{module}.ingest", ingest)
    for module in ("ingest.lake_building", "distill.students.feature_students"):
        monkeypatch.setattr(f"{module}.extract", extract)
    for check in ("check_teachers", "_check_workers"):
        monkeypatch.setattr(f"ingest.lake_building.{check}", Recorder(None))
    answer = BUILD.run(capsys, places).value
    assert answer["ingested"]["tiles"] == {"0.5": 3}
    assert (answer["page"], answer["extracted"]["ready"]) == ("page", 1)
    INGEST.run(capsys, places)
    EXTRACT.run(capsys, places)

    ours, theirs = ingest.calls
    assert theirs.pop("auto_vacuum") is True  # a build frees old versions once, at its end
    assert ours.pop("commit_slides") is None
    assert ours == theirs
    assert ours["arguments"][2] == LakeConfig(
        mpps=(0.5,), tile_px=128, stride_px=64, tissue_min=0.2, mix_codecs=True
    )
    ours, theirs = extract.calls
    assert ours.pop("column_makers")
    assert theirs.pop("mpps") is None
    assert ours == theirs
    assert (ours["auto_vacuum"], ours["fov"]) == (True, "nearest")


def test_build_plans_without_writing(
    places: Mapping[str, object], tmp_path: Path, capsys: Output
) -> None:
    plan = PLAN.run(capsys, places).value
    tiles = plan["tiles"]["2.0"]
    assert tiles > 3
    assert plan["features"] == {TEACHERS[0]: 2 * 1280 * tiles, "uni2_h": 2 * 1536 * tiles}
    text = PLAN_TEXT.run(capsys, places).stdout
    assert "kB of features" in text
    assert "uni2_h: its weights are not on this machine" in text
    assert text.strip().endswith("nothing was written")
    assert list(tmp_path.iterdir()) == []


def test_ls_names_what_is_in_a_lake(
    filled: Path, tmp_path: Path, capsys: Output, lake: Lake
) -> None:
    copy = tmp_path / "lake"
    shutil.copytree(filled, copy)
    for folder in ("students/small", "runs/mil-3f0a1b2c4d5e", "runs/probe-3f0a1b2c4d5e"):
        (copy / folder).mkdir(parents=True)
    open_lake(copy).snapshot("paper-v1")
    listing = LS.run(capsys, {"filled": copy}).value
    assert listing["students"] == ["small"]
    assert listing["runs"] == ["mil-3f0a1b2c4d5e", "probe-3f0a1b2c4d5e"]
    assert listing["snapshots"] == {"paper-v1": lake.version}
    assert {**listing, "lake": 0, "snapshots": {}} == {
        **lake.info(),
        "lake": 0,
        "students": ["small"],
        "runs": listing["runs"],
    }
    text = LS_TEXT.run(capsys, {"filled": copy}).stdout
    assert "slides      7 ready, 0 failed\n" in text
    assert f"columns     {TEACHERS[0]}: 1,280 numbers a tile at 0.5 mpp, 2.0 mpp\n" in text
    assert "snapshots   paper-v1: version " in text
    assert "annotations none\n" in text
    assert LS_AT.run(capsys, {"filled": filled}).value["slides"]["ready"] == 0


def test_ls_counts_many_runs_and_names_columns_that_lack_tiles() -> None:
    from commands.lakes.ls import _level, _runs

    names = [f"mil-{number:012x}" for number in range(20)] + ["probe-3f0a1b2c4d5e"]
    assert _runs(names) == ["20 mil, 1 probe; slidelake runs lists their measures"]
    column = {"mpp": 2.0, "tiles": 5, "complete": False}
    assert _level(column, {"0.5": 160, "2.0": 10}) == (
        "2.0 mpp (5 of 10 tiles: extract makes the rest)"
    )


def test_version_is_that_of_the_package(tmp_path: Path) -> None:
    """In a process of its own: what pytest has imported already is not there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "slidelake", *VERSION.words({})],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    answer = f"slidelake {project['version']}\n"
    assert (done.returncode, done.stdout) == (0, answer), done.stderr


def test_completion_is_shown_and_installed(
    slidelake: Slidelake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for module in ("completion", "_completion_shared"):
        monkeypatch.setattr(f"typer.{module}._get_shell_name", lambda: "bash")
    assert (
        "complete -o default -F _slidelake_completion slidelake"
        in slidelake(*SHOW.words({})).stdout
    )
    slidelake(*INSTALL.words({}))
    assert "slidelake" in (tmp_path / ".bashrc").read_text()


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("extract {lake} --teacher uni", ["uni", "uni2_h"]),
        ("extract {lake} --teacher sma", ["small"]),
        ("extract s3://bucket/lake --teacher sma", []),
        ("build {lake} slides/ --teacher uni2", ["uni2_h"]),
        ("mil {lake} --features sma", ["small"]),
        ("mil {lake} --like mil", ["mil-3f0a1b2c4d5e"]),
        ("evaluate {lake} --student s", ["small"]),
        ("attention {lake} mi", ["mil-3f0a1b2c4d5e"]),
        ("extract {lake} --precision bf", ["bfloat16"]),
        ("bui", ["build"]),
    ],
)
def test_the_shell_completes_names(
    typed: str, expected: list[str], tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    import typer

    import slidelake

    for folder in ("students/small", "runs/mil-3f0a1b2c4d5e"):
        (tmp_path / folder).mkdir(parents=True)
    words = typed.format(lake=tmp_path).split()
    monkeypatch.setenv("COMP_WORDS", " ".join(["slidelake", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    monkeypatch.setenv("_SLIDELAKE_COMPLETE", "complete_bash")
    monkeypatch.setattr(sys, "argv", ["slidelake"])
    with pytest.raises((SystemExit, typer.Exit)):
        slidelake.app(prog_name="slidelake")
    assert capsys.readouterr().out.split() == expected


def test_completion_loads_nothing_heavy() -> None:
    code = (
        "import sys, slidelake\n"
        "try:\n"
        "    slidelake.app(prog_name='slidelake')\n"
        "finally:\n"
        "    heavy = {'torch', 'ray', 'lance', 'polars', 'numpy'} & set(sys.modules)\n"
        "    print(sorted(heavy), file=sys.stderr)\n"
    )
    words = "slidelake extract my-lake --teacher uni2"
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={
            **os.environ,
            "COMP_WORDS": words,
            "COMP_CWORD": "4",
            "_SLIDELAKE_COMPLETE": "complete_bash",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.stdout.split(), process.stderr.split()) == (["uni2_h"], ["[]"])
