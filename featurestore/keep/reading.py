"""Reads whose errors are sorted: damage becomes one kind of error, everything else is raised on."""

import re
from collections.abc import Callable
from typing import TypeVar

from featurestore.errors import AccessError, LakeMissingError
from featurestore.storage import Store

#: Errors that say nothing of what is stored.
NO_DAMAGE = (AccessError, LakeMissingError)
# Where Lance's own code raised it: of no use to who reads the message.
RUST_PLACE = re.compile(r",? ?(/home/runner|/rustc|/root/\.cargo)\S*|Lance(Error)?\(\w+\): ")
LONGEST = 200

T = TypeVar("T")


class UnreadableError(Exception):
    """Something that can't be read because of what it holds; the text says why."""


def read(store: Store, work: Callable[[], T]) -> T:
    """Run a read; whatever a damaged file makes Lance raise becomes an UnreadableError.

    Raises:
        UnreadableError: what is stored is damaged.
        SystemRefusalError: the machine could not read it.
        BucketError: the bucket could not be asked.
    """
    try:
        return work()
    except (KeyboardInterrupt, SystemExit, GeneratorExit, *NO_DAMAGE):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        if explanation := store.explained(error):
            raise explanation from error
        raise UnreadableError(short_reason(error)) from error


def short_reason(error: BaseException) -> str:
    """Return an error's text in one short line, without places in Lance's code.

    >>> short_reason(ValueError("LanceError(IO): bad footer, /home/runner/work/x.rs:1:2"))
    'bad footer'
    """
    text = RUST_PLACE.sub("", " ".join(str(error).split())).strip(" ,")
    return text[:LONGEST] or type(error).__name__
