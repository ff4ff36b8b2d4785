"""Environment variables that are set for the time of a block.

Ray is steered by the environment, also where a function has an argument for the same thing, and it
writes to the environment of its caller.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def patched_environ(changes: Mapping[str, str | None], *, keep: str = "") -> Iterator[None]:
    """Apply `changes` to `os.environ`; on leaving, put the old values back.

    Args:
        changes: name -> new value, or None to unset it.
        keep: one more name that is not changed here but restored at the end, for a variable
            that the code inside writes.

    Example:
        >>> with patched_environ({"SLIDELAKE_EXAMPLE": "1"}):
        ...     os.environ["SLIDELAKE_EXAMPLE"]
        '1'
        >>> "SLIDELAKE_EXAMPLE" in os.environ
        False
    """
    names = [*changes, *([keep] if keep else [])]
    before = {name: os.environ.get(name) for name in names}
    _set_variables(changes)
    try:
        yield
    finally:
        _set_variables(before)


def _set_variables(changes: Mapping[str, str | None]) -> None:
    for name, setting in changes.items():
        if setting is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = setting
