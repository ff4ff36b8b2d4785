"""The how-to pages, run as they stand on the tests' small lake.

Blocks of `sh` and `python` are run. Those of `bash` are too dear for this (they cut slides, run
teachers, train) or need what is not here (a bucket, SLURM); the commands in them have tests of
their own.
"""

import shutil
from pathlib import Path

import polars as pl
import pytest

from tests.conftest import ROOT
from tests.worlds.command_lines import Slidelake
from tests.worlds.page_blocks import blocks_of, command_lines_of, lines_not_printed

HOWTO = sorted((ROOT / "docs" / "howto").glob("*.md"))
PAGES = [*HOWTO, *sorted((ROOT / "docs" / "coming-from").glob("*.md"))]
RUNNABLE = [page for page in PAGES if {block.kind for block in blocks_of(page)} & {"sh", "python"}]


@pytest.fixture
def folder(lake_copy: Path, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `my-lake` and the tables that the pages name."""
    shutil.move(lake_copy, tmp_path / "my-lake")
    table = pl.read_csv(cohort)
    table.write_csv(tmp_path / "labels.csv")
    table.select("slide_id", "patient_id").write_csv(tmp_path / "patients.csv")
    pl.DataFrame(
        {"slide_id": ["P000-1", "P000-1"], "x": [600, 600], "y": [300, 600], "region": ["a", "b"]}
    ).write_csv(tmp_path / "regions.csv")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.stem)
def test_page_runs(page: Path, folder: Path, slidelake: Slidelake) -> None:
    names: dict[str, object] = {}
    for block in blocks_of(page):
        if block.kind == "python":
            exec(compile(block.text, page.name, "exec"), names)
        elif block.kind == "sh":
            for command, *words in command_lines_of(block):
                assert command == "slidelake"
                slidelake(*words)
    made = {
        "hand-over": ["colleague-lake/lake.json", "mostly-tissue.parquet", "for-clam", "runs.csv"],
        "similar-tiles": ["similar.html"],
        "slide2vec": ["P000-1.pt"],
    }
    assert [name for name in made.get(page.stem, []) if not (folder / name).exists()] == []


def test_most_pages_run() -> None:
    assert {page.stem for page in HOWTO} - {page.stem for page in RUNNABLE} == {
        *("index", "bucket", "cluster", "compare-encoders", "student")
    }


def test_every_page_is_listed_and_says_what_goes_wrong() -> None:
    for index in (page for page in PAGES if page.stem == "index"):
        others = {page.name for page in index.parent.glob("*.md")} - {index.name}
        assert {name for name in others if f"({name})" not in index.read_text()} == set()
    for page in HOWTO:
        text = page.read_text()
        assert page.stem == "index" or ("**Goal**" in text and "**Where on**" in text), page


def test_output_is_compared_by_its_numbers() -> None:
    printed = "  1  0.7601  a:10,20  (x)\n53 tiles, 3.5 tiles/s"
    assert lines_not_printed("  1  0.7620  a:10,20  (x)\n53 tiles, …", printed) == []
    assert lines_not_printed("  1  0.8620  a:10,20  (x)", printed) == ["  1  0.8620  a:10,20  (x)"]
    assert lines_not_printed("54 tiles", printed) == ["54 tiles"]
