"""Reads that turn damage into one kind of error and raise all other errors on."""

from collections.abc import Callable
from typing import TypeVar

from featurestore.errors import AccessError, LakeMissingError
from featurestore.storage.read_errors import reason_of
from featurestore.storage.store import Store

#: Errors that say nothing of what is stored.
NO_DAMAGE = (AccessError, LakeMissingError)

T = TypeVar("T")


class UnreadableError(Exception):
    """Raised when a stored file or table is damaged; the text is the reason."""


def read(store: Store, work: Callable[[], T]) -> T:
    """Run and return a read; Lance's errors of a damaged file become UnreadableError.

    Raises:
        UnreadableError: the stored file is damaged.
        AccessError: the file could not be read, though it may be whole.
        MemoryError: there was too little of it.
    """
    try:
        return work()
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, *NO_DAMAGE):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        if explanation := store.explained(error):
            raise explanation from error
        raise UnreadableError(reason_of(error)) from error
