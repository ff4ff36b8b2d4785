"""A user's own Python file: an encoder or a segmenter, run as it is.

Only a file that the user names in the command is ever run; none comes out of a lake. Its text
travels to the workers, which need no copy of it. Its weights may lie in a bucket: a `WEIGHTS` that
is a URL is fetched once on each node, and the file then finds the local path under that name.
"""

import importlib.util
import re
import tempfile
from pathlib import Path
from typing import Any

from ingest.errors import TeacherError

SUFFIX = ".py"
_TAKEN = re.compile(
    r"(?P<path>.+\.py)(?P<taken>(:[a-z+]+[0-9]*)?(@L[0-9]+)?(@S[0-9]+|@macenko|@reinhard)?)",
    re.DOTALL,
)


def split_own(teacher: str) -> tuple[str, str] | None:
    """Return the path of a user's encoder, and what is taken of its tokens; None for a name.

    >>> split_own("my/encoder.py:patches25@L2"), split_own("encoder.py"), split_own("uni2_h:cls")
    (('my/encoder.py', ':patches25@L2'), ('encoder.py', ''), None)
    """
    match = _TAKEN.fullmatch(teacher)
    return None if match is None else (match["path"], match["taken"])


def own_weights(module: Any, where: str, error_type: type[Exception]) -> Path | None:  # noqa: ANN401
    """Return the path of the weights that a user's file names as `WEIGHTS`; None if it names none.

    Args:
        module: the module of the file.
        where: path of the file, for messages.
        error_type: class of the error that is raised if they are not on this machine.
    """
    weights = getattr(module, "WEIGHTS", None)
    if weights is None:
        return None
    if not Path(weights).is_file():
        msg = f"{where}: its WEIGHTS, {weights}, are not a file on this machine"
        raise error_type(msg)
    return Path(weights)


def run_file(source: str, where: str, error_type: type[Exception]) -> Any:  # noqa: ANN401
    """Run a file's text and return its module.

    Args:
        source: text of the file.
        where: path of the file, for messages.
        error_type: class of the error that is raised if the text can't be run.
    """
    with tempfile.TemporaryDirectory(prefix="slidelake-") as folder:
        path = Path(folder) / Path(where).name
        path.write_text(source)
        spec = importlib.util.spec_from_file_location("slidelake_own_file", path)
        if spec is None or spec.loader is None:
            msg = f"{where} is no Python file"
            raise error_type(msg)
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            msg = f"{where} can't be run: {type(error).__name__}: {error}"
            raise error_type(msg) from error
    weights = getattr(module, "WEIGHTS", None)
    if isinstance(weights, str) and "://" in weights:
        from ingest.teachers.weights.node_cache import cached_file

        try:
            vars(module)["WEIGHTS"] = str(cached_file(weights))
        except TeacherError as error:
            msg = f"{where}: {error}"
            raise error_type(msg) from error
    return module
