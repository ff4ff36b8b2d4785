"""What examples in docstrings find: `sl`, `pl`, a folder with a lake, and in lake.py `lake`."""

import doctest
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import slidelake
from tests.worlds.example_lake import make_example

READERS = ("featurestore/lake.py",)


@pytest.fixture(scope="session")
def example_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small lake without Ray. Not to be changed."""
    folder = tmp_path_factory.mktemp("example") / "lake"
    make_example(folder)
    return folder


@pytest.fixture(autouse=True)
def lake_of_examples(request: pytest.FixtureRequest, doctest_namespace: dict[str, Any]) -> None:
    """Give the examples of modules that read a lake the name `lake`."""
    is_reader = request.path.as_posix().endswith(READERS)
    if _example_of(request) and is_reader:
        doctest_namespace["lake"] = slidelake.open_lake(request.getfixturevalue("example_lake"))


@pytest.fixture(autouse=True)
def folder_of_examples(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    doctest_namespace: dict[str, Any],
) -> Iterator[None]:
    """Let examples use `sl` and `pl`, and work in a fresh copy of the folder if they name a lake.

    `tests/worlds/examples_folder.py` lists its files: `my-lake`, `labels.csv`, `regions.csv`.
    """
    test = _example_of(request)
    if test is None:
        yield
        return
    doctest_namespace.update(sl=slidelake, pl=pl)
    source = "".join(example.source for example in test.examples)
    if "-lake" not in source and ".csv" not in source:
        yield
        return
    from tests.conftest import made_once
    from tests.worlds.examples_folder import make_folder, without_ray

    folder, before = tmp_path_factory.mktemp("example"), Path.cwd()
    whole = made_once(tmp_path_factory, "examples", make_folder)
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    os.chdir(folder)
    try:
        with without_ray():
            yield
    finally:
        os.chdir(before)
        shutil.rmtree(folder)


def _example_of(request: pytest.FixtureRequest) -> doctest.DocTest | None:
    """Return the examples of a docstring, if that is what is tested."""
    test = getattr(request.node, "dtest", None)
    return test if isinstance(test, doctest.DocTest) else None
