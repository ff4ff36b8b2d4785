"""The lake that examples in docstrings call `lake`."""

from pathlib import Path
from typing import Any

import pytest
from _pytest.doctest import DoctestItem

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
    if isinstance(request.node, DoctestItem) and is_reader:
        from featurestore import open_lake

        doctest_namespace["lake"] = open_lake(request.getfixturevalue("example_lake"))
