"""The start of a command that only reads tables, without pandas.

pyarrow imports pandas, if it is installed, at the first value that it looks at, and that is while
`pyarrow.dataset` is imported, which Lance does: half of the time of a command that reads a few
rows. pandas is not a dependency of slidelake, and nothing that these commands call uses it.
"""

import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _NoPandas(MetaPathFinder):
    """A finder that hides pandas from an import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "pandas":
            msg = "pandas is hidden while pyarrow starts"
            raise ModuleNotFoundError(msg, name=fullname)
        return None


def start_without_pandas() -> None:
    """Import pyarrow's data sets with pandas hidden, unless one of the two is imported already.

    This is for the process of a command, and for no library: pyarrow then takes a pandas Series for
    any other sequence, until something has it import pandas (`Table.to_pandas` does).
    """
    if "pandas" in sys.modules or "pyarrow.dataset" in sys.modules:
        return
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        importlib.import_module("pyarrow.dataset")
    finally:
        sys.meta_path.remove(finder)


def starting_without_pandas(function: Callable[..., None]) -> Callable[..., None]:
    """Return a command's function that calls `start_without_pandas` first."""

    @functools.wraps(function)
    def started(options: Any) -> None:  # noqa: ANN401 - the options of any command
        start_without_pandas()
        function(options)

    return started
