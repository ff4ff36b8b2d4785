"""Where CI is set every test runs: one that is skipped fails, but for want of a GPU."""

import os
import subprocess
import sys
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
