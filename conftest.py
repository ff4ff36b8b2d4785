"""The examples in docstrings run in a folder of their own, where there is a small lake."""

import doctest
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import slidelake


@pytest.fixture(autouse=True)
def _folder_of_examples(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    doctest_namespace: dict[str, Any],
) -> Iterator[None]:
    """Let examples say `sl` and `pl`, and work in a fresh copy of the folder if they name a lake.

    `tests/worlds/examples_folder.py` tells what is there: `my-lake`, `labels.csv`, `regions.csv`.
    """
    test = getattr(request.node, "dtest", None)
    if not isinstance(test, doctest.DocTest):
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
    shutil.copytree(
        made_once(tmp_path_factory, "examples", make_folder), folder, dirs_exist_ok=True
    )
    os.chdir(folder)
    try:
        with without_ray():
            yield
    finally:
        os.chdir(before)
        shutil.rmtree(folder)
