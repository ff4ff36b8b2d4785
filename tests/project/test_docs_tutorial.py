"""The tutorial, run as a user of an installed slidelake does it: from an empty folder, in order."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.worlds.page_blocks import blocks_of, lines_not_printed

PAGE = ROOT / "docs" / "tutorial.md"


class Reader:
    """A reader who types each block, the shell's in bash and Python's in one session.

    Args:
        folder: folder of the reader; the lake is made in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = "import matplotlib\nmatplotlib.use('Agg')\n"
        self.environ = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }

    def type(self, kind: str, text: str) -> str:
        """Run a block and return what it prints; a session's earlier blocks print nothing anew."""
        if kind == "sh":
            return self._run(["bash", "-e", "-o", "pipefail", "-c", text])
        silent = "import builtins\nprint = lambda *_: None\n" + self.python
        self.python += text
        return self._run([sys.executable, "-c", f"{silent}print = builtins.print\n{text}"])

    def _run(self, words: list[str]) -> str:
        ended = subprocess.run(
            words, cwd=self.folder, env=self.environ, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, f"{words[-1]}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout


@pytest.mark.slow
def test_tutorial(tmp_path: Path) -> None:
    reader, printed = Reader(tmp_path), ""
    for block in blocks_of(PAGE):
        if block.kind == "text":
            assert lines_not_printed(block.text, printed) == [], printed
        else:
            printed = reader.type(block.kind, block.text)
    for name in ("tutorial-lake/ingest.html", "similar.png", "heat.png"):
        assert (tmp_path / name).stat().st_size > 1000


def test_pictures_of_the_tutorial_are_small() -> None:
    pictures = [*(ROOT / "docs" / "images").glob("tutorial_*"), *PAGE.parent.glob("images/howto_*")]
    assert len(pictures) == 6
    assert {picture.name for picture in pictures if picture.stat().st_size > 100_000} == set()
