"""A user's own files that put entries into the tables of readers, scores, aggregators and terms.

Such a file is run once in every process that takes part in a command. Only a file that the user
names is ever run; its text travels with the work, so that workers need no copy of the file.
"""

import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from cluster.errors import ExtensionError


@dataclass(frozen=True, kw_only=True)
class Extension:
    """A user's file as it travels to the workers.

    Attributes:
        path: path of the file, for messages and tracebacks.
        text: the file's text.
    """

    path: str
    text: str

    @property
    def module(self) -> str:
        """Return the name that the file has as a module: its own, without `.py`."""
        return Path(self.path).stem


_loaded: dict[str, Extension] = {}


def extend(*paths: str | os.PathLike[str]) -> None:
    """Run files that put entries into the tables of slidelake, here and in all workers from now on.

    A file that has not changed is not run again.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "my_own_tables.py"
        ...     _ = file.write_text("TABLE = {'mine': 1}")
        ...     extend(file)
        >>> sys.modules["my_own_tables"].TABLE
        {'mine': 1}

    Args:
        paths: Python files; the name of each is that of a module which is not there yet.

    Raises:
        ExtensionError: a file can't be read or run, or its name is taken.
    """
    for path in paths:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            msg = f"{path} can't be read: {error}; give the path of a Python file"
            raise ExtensionError(msg) from error
        load_extensions([Extension(path=str(Path(path).absolute()), text=text)])


def loaded_extensions() -> tuple[Extension, ...]:
    """Return the files that were run in this process, for the workers to run them too."""
    return tuple(_loaded.values())


def load_extensions(extensions: Iterable[Extension]) -> None:
    """Run files in this process that have not been run in it yet.

    Raises:
        ExtensionError: a file can't be run, or its name is taken.
    """
    for extension in extensions:
        if _loaded.get(extension.module) != extension:
            _run(extension)
            _loaded[extension.module] = extension


def extension_sha256(loader: str) -> str | None:
    """Return the hash of the user's file that a table's entry comes from; None if it is our own.

    Args:
        loader: the entry's `module:attribute`.
    """
    extension = _loaded.get(loader.partition(":")[0])
    return None if extension is None else hashlib.sha256(extension.text.encode()).hexdigest()


def _run(extension: Extension) -> None:
    name = extension.module
    _check_name(extension)
    spec = importlib.util.spec_from_loader(name, None, origin=extension.path)
    module = ModuleType(name)
    module.__file__, module.__spec__ = extension.path, spec
    before, sys.modules[name] = sys.modules.get(name), module
    try:
        exec(compile(extension.text, extension.path, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        msg = f"{extension.path} can't be run: {type(error).__name__}: {error}"
        raise ExtensionError(msg) from error


def _check_name(extension: Extension) -> None:
    """Refuse a file whose name as a module is none, or is that of another module."""
    name, path = extension.module, Path(extension.path)
    if path.suffix != ".py" or not name.isidentifier():
        msg = f"{path} given; the name of such a file is letters, digits and _, and ends in .py"
        raise ExtensionError(msg)
    if name in _loaded:
        if _loaded[name].path == extension.path:
            return
        msg = f"{path} and {_loaded[name].path} have one name; rename one of them"
        raise ExtensionError(msg)
    try:
        spec = None if name == "__main__" else importlib.util.find_spec(name)
    except ValueError:  # a module without a spec
        msg = f"{path} has the name of another module, {name}; rename the file"
        raise ExtensionError(msg) from None
    if name == "__main__" or (spec and Path(spec.origin or "").resolve() != path.resolve()):
        place = spec.origin if spec else "Python itself"
        msg = f"{path} has the name of another module, {name} ({place}); rename the file"
        raise ExtensionError(msg)
