"""Errors in a user's table; their messages are for the user."""

from collections.abc import Iterator
from contextlib import contextmanager


class TableError(ValueError):
    """Raised for a table or a cell that can't be read; the text names row and column."""


@contextmanager
def tables_raise(kind: type[Exception]) -> Iterator[None]:
    """Raise `kind` with the same text where the block raises a `TableError`."""
    try:
        yield
    except TableError as error:
        raise kind(str(error)) from error
