"""What pages must say, as no code can: what was never tried, when to do what, what is measured."""

import json
import shutil
import subprocess

import pytest

from tests.conftest import ROOT
from tests.worlds.kill_drill import KINDS

#: A page, and words that stand in one paragraph (or row) of it.
SAID = [
    ("docs/installing.md", ("uv pip install", "--torch-backend cpu")),
    ("docs/installing.md", ("macOS", "Windows", "ARM", "never tried")),
    ("README.md", ("macOS", "Windows", "ARM")),
    ("docs/ingest.md", (".vms", "untried")),
    ("docs/ingest.md", ("OME-XML", "else from the", "objective")),
    ("docs/tissue.md", ("TRIDENT", "contours_geojson", "--masks")),
    ("docs/keeping.md", ("compact", "fragments", "some thousand")),
    ("docs/keeping.md", ("Compact first, then vacuum",)),
    ("docs/keeping.md", ("--auto-vacuum", "newest 100", "7 days")),
    ("docs/keeping.md", ("cp -a", "slidelake verify")),
    ("docs/keeping.md", ("the catalog before all that it names",)),
    ("docs/format.md", ("index_crc32", "null, or the column absent")),
    ("docs/damage.md", ("500,000", "kilobytes")),
    ("docs/decisions.md", ("benchmarks.first_reads", "of a whole `mil` run (5 were allowed)")),
]


@pytest.mark.parametrize(("page", "words"), SAID, ids=lambda value: str(value)[:40])
def test_pages_say_it(page: str, words: tuple[str, ...]) -> None:
    paragraphs = (ROOT / page).read_text().split("\n\n")
    assert any(all(word in paragraph for word in words) for paragraph in paragraphs)


def test_make_setup_installs_the_extra_survival() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    command = [make, "--dry-run", "--always-make", "setup"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    (install,) = [line for line in printed.splitlines() if "pip install" in line and "[" in line]
    assert "survival" in install.rpartition("[")[2].partition("]")[0].split(",")


def test_the_kept_kill_drill_has_sixty_kills_and_whole_lakes() -> None:
    (path,) = (ROOT / "benchmarks" / "results").glob("kills-*.json")
    (line,) = json.loads(path.read_text())["lines"]
    assert line["kills"] == sum(line["by_kind"].values()) == sum(line["by_stage"].values()) >= 60
    assert set(line["by_kind"]) == set(KINDS)
    assert line["lakes_damaged_or_unequal"] == 0 < line["lakes_ended_equal"]
