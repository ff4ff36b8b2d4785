"""Names in docstrings and docs: modules, files, columns of teachers and commands exist."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import slidelake
from examples.demo import STUDENT, TEACHERS
from ingest import CARDS
from ingest.slide_encoders import SLIDE_ENCODERS
from tests.conftest import ROOT

PACKAGES = slidelake.PACKAGES
SOURCES = [
    ROOT / "slidelake.py",
    *(path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))),
]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "cluster" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
TICKED = re.compile(r"`+([^`\s]+)`+")
DOTTED = re.compile(rf"(?:{'|'.join(PACKAGES)}|slidelake|tests|benchmarks)(?:\.\w+)+")
FILE = re.compile(r"[\w/.-]*\w\.py")
#: Files that users write, and sources of other projects that a module names.
OTHER_FILES = {"FILE.py", "ingest.py", "json.py", "numpy.py", "my_encoder.py", "my_score.py",
               "my_segmenter.py", "layers/hmsa.py", "metrics/retrieval.py", "plotting/metrics.py",
               "create_heatmaps.py", "create_splits_seq.py", "eval.py", "main.py",
               "LinearProbeExperiment.py", "CoxNetExperiment.py", "mettle.py", "ticon.py",
               "modeling/crossval.py"}  # fmt: skip
DATA_FILE = re.compile(r".*\.(?:html|json|png)")
#: Options of a command line, and calls in Python, that take names of teachers.
OPTION = re.compile(r"--(?:teacher|features|student|single)[ =]([^\s`|)]+)")
CALL = re.compile(
    r"(?:\.features\(|\.bag\([^,]+, |\.nearest\([^,]+, |build_index\(open_lake\([^)]*\), )"
    r"\"([^\"]+)\""
)
#: Columns that examples make: students, and those that an import brings.
MADE = re.compile(
    r"slidelake (?:--extend \S+ )*distill .*--name (\S+)|"
    r"slidelake import .*--teacher (\S+)|name=\"([\w-]+)\""
)
PLACEHOLDERS = {"FILE", "NAME", "NAME:POOLING", "NAME=FOLDER", "TEACHER:patches"}


def docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of a module, its classes and its functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def ticked(path: Path) -> set[str]:
    """Return the texts between backticks in a page, or in the docstrings of a module."""
    texts = [path.read_text()] if path.suffix == ".md" else docstrings(path)
    return {name for text in texts for name in TICKED.findall(text)}


@cache
def file_names() -> frozenset[str]:
    """Return the path of each Python file here, and every end of it that starts at a folder."""
    paths = [path.relative_to(ROOT).parts for path in SOURCES]
    paths += [
        path.relative_to(ROOT).parts
        for folder in ("tests", "benchmarks", "docs")
        for path in (ROOT / folder).rglob("*.py")
    ]
    return frozenset("/".join(parts[at:]) for parts in paths for at in range(len(parts)))


def exists(name: str) -> bool:
    """Return whether a dotted name is a module here, or a name that stands in one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if file.exists() or path.is_dir():
            rest = parts[length:]
            return not rest or (
                file.exists() and bool(re.search(rf"\b{rest[0]}\b", file.read_text()))
            )
    return False


@pytest.mark.parametrize("path", [*SOURCES, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_files_between_backticks_exist(path: Path) -> None:
    names = ticked(path)
    dotted = {name for name in names if DOTTED.fullmatch(name) and not DATA_FILE.fullmatch(name)}
    missing = [name for name in dotted if not exists(name)]
    missing += [
        name
        for name in names
        if FILE.fullmatch(name) and name not in OTHER_FILES and name not in file_names()
    ]
    assert missing == []


def column_of(text: str) -> str:
    """Return the name of a card or column without its pooling, layer and stain variant."""
    return text.partition(":")[0].partition("@")[0]


def parts_of_vectors(name: str) -> list[str]:
    """Return the columns of slides' vectors (ENCODER.COLUMN), and an encoder that has no card.

    Another name is returned as it is.
    """
    encoder, _, rest = name.partition(".")
    columns = [part for part in rest.split(".") if part not in ("patient", "section")]
    if not rest:
        return [name]
    return columns if encoder in SLIDE_ENCODERS else [encoder, *columns]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_examples_name_teachers_that_exist(path: Path) -> None:
    text = path.read_text()
    made = {name.partition("=")[0] for names in MADE.findall(text) for name in names if name}
    columns = {*CARDS, *TEACHERS, STUDENT, *made}
    named = {
        column_of(part)
        for name in (*OPTION.findall(text), *CALL.findall(text))
        if name not in PLACEHOLDERS and not name.endswith(".py")
        for joined in name.split("+")
        for part in parts_of_vectors(joined)
    }
    assert named <= columns, f"{named - columns}: no card, and no column of the demo's lake"


def test_the_check_itself_finds_what_is_missing() -> None:
    assert exists("ingest.ray_ingest.ingest")
    assert not exists("ingest.ray_ingest.nothing_like_it")
    assert not exists("ingest.nowhere")
    assert "ray_ingest.py" in file_names()
    assert column_of("virchow2:cls+mean@L12") == "virchow2"
