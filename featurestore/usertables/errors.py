"""What is wrong with a user's table; the message is what the user reads."""

from collections.abc import Iterator
from contextlib import contextmanager


class TableError(ValueError):
    """A table that can't be read, or a cell of it; the text names the row and the column."""


@contextmanager
def tables_raise(kind: type[Exception]) -> Iterator[None]:
    """Raise `kind` with the same text where the block raises a `TableError`."""
    try:
        yield
    except TableError as error:
        raise kind(str(error)) from error
