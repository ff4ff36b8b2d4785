"""Where CI is set every test runs: one that is skipped fails, but for want of a GPU."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT

TESTS = """
import pytest

@pytest.mark.skipif(True, reason="no root here")
def test_root() -> None: ...

def test_packages() -> None:
    pytest.skip("rsync is not installed")

def test_gpu() -> None:
    pytest.skip("there is no GPU here")

@pytest.mark.xfail(reason="known")
def test_known() -> None:
    assert False
"""
HOOKS = "from tests.skipped import pytest_make_collect_report, pytest_runtest_makereport\n"
CONTINUE = "--continue-on-collection-errors"
FILE = "import pytest\npytest.importorskip('no_such_module')\n"


@pytest.mark.parametrize("ci", ["", "true"])
def test_a_skipped_test_fails_where_ci_is_set(ci: str, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(HOOKS)
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_file.py").write_text(FILE)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", CONTINUE, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "CI": ci, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    closing = done.stdout.strip().splitlines()[-1]
    if ci:
        assert done.returncode != 0
        assert "no root here" in done.stdout
        assert "rsync is not installed" in done.stdout
        assert "no_such_module" in done.stdout
        assert "error" in closing
    else:
        assert done.returncode == 0, done.stdout
        assert "4 skipped, 1 xfailed" in closing


# ---------------------------------------------------------------------- .ci/run


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a run of `.ci/run` ended with, and the programs that it called, with their words."""

    code: int
    calls: list[str]


#: A program that writes down its call, and then prints and exits as the file beside it says.
STUB = """#!/bin/bash
echo "$(basename "$0") $*" >> {folder}/calls
answer={folder}/$(basename "$0")-${{1//[^a-z-]/}}.sh
[ -f "$answer" ] && . "$answer"
exit 0
"""
#: How make names a recipe that failed: 1 is that tests failed, 2 that some were not reached.
FAILED = 'echo "make: *** [Makefile:31: {target}] Error {code}" >&2; exit 2'


def run_ci(folder: Path, answers: Mapping[str, str], *, missing: Sequence[str] = ()) -> Ended:
    """Run `.ci/run` in a folder of its own, with stubs in place of every program that it looks for.

    Args:
        folder: an empty folder.
        answers: lines of shell by the program and its first word, as `make-test`.
        missing: programs that are not there.
    """
    script = (ROOT / ".ci" / "run").read_text()
    programs = {*re.findall(r"^need (\S+)", script, re.MULTILINE), "apt-get"} - {*missing}
    bin_folder, pytest_folder = folder / "bin", folder / ".venv" / "bin"
    for place, names in ((bin_folder, programs), (pytest_folder, {"pytest"})):
        place.mkdir(parents=True)
        for name in names:
            (place / name).write_text(STUB.format(folder=folder))
            (place / name).chmod(0o755)
    # What the script itself is made of, without the folders that hold the real programs.
    for name in ("bash", "env", "dirname", "basename", "mktemp", "rm", "tee", "grep", "id"):
        (bin_folder / name).symlink_to(Path("/usr/bin") / name)
    (bin_folder / "python3").symlink_to(sys.executable)
    for name, lines in answers.items():
        (folder / f"{name}.sh").write_text(lines)
    (folder / ".ci").mkdir()
    (folder / ".ci" / "run").write_text(script)
    done = subprocess.run(
        ["/usr/bin/bash", str(folder / ".ci" / "run")],
        env={"PATH": str(bin_folder), "TMPDIR": str(folder)},
        capture_output=True,
        check=False,
    )
    return Ended(code=done.returncode, calls=(folder / "calls").read_text().splitlines())


def test_ci_runs_both_suites_once(tmp_path: Path) -> None:
    assert run_ci(tmp_path, {}) == Ended(code=0, calls=["make test", "make test-slow"])


def test_ci_lets_no_test_be_skipped(tmp_path: Path) -> None:
    ended = run_ci(tmp_path, {"make-test": f'echo "CI is $CI" >> {tmp_path}/calls'})
    assert ended.calls[:2] == ["make test", "CI is true"]


@pytest.mark.parametrize(("pytest_code", "code"), [(0, 0), (1, 1)])
def test_ci_runs_what_failed_once_more_and_that_counts(
    tmp_path: Path, pytest_code: int, code: int
) -> None:
    answers = {
        "make-test-slow": FAILED.format(target="test-slow", code=1),
        "pytest---last-failed": f"exit {pytest_code}",
    }
    ended = run_ci(tmp_path, answers)
    assert ended.code == code
    assert ended.calls[:2] == ["make test", "make test-slow"]
    assert ended.calls[2].endswith("-m slow and not gpu and not servers")
    assert "--last-failed-no-failures=none" in ended.calls[2]


@pytest.mark.parametrize(
    "answer",
    [
        FAILED.format(target="test-slow", code=2),  # interrupted, as by a time limit
        FAILED.format(target="test-slow", code=124),
        "exit 143",  # make itself was ended
    ],
)
def test_ci_fails_where_a_test_was_not_reached(tmp_path: Path, answer: str) -> None:
    ended = run_ci(tmp_path, {"make-test-slow": answer})
    assert ended.code != 0
    assert ended.calls == ["make test", "make test-slow"]


@pytest.mark.skipif(os.geteuid() != 0, reason="packages of Debian need root")
def test_ci_installs_what_tests_need_of_debian(tmp_path: Path) -> None:
    ended = run_ci(tmp_path, {}, missing=["unshare", "chromium"])
    assert ended.code == 0
    installed = next(call for call in ended.calls if call.startswith("apt-get install"))
    assert {"util-linux", "chromium"} <= set(installed.split())
    assert ended.calls.index(installed) < ended.calls.index("make test")
