"""The meaning of a read error, in one line: damage of a stored file, or no access to it now.

Lance raises OSError, ValueError, RuntimeError and more, with paths of its own source in the text,
and a panic in Rust is no Exception at all. This module alone decides which of these are damage.
A lost file is; a full table of descriptors, a broken disk or missing rights are not.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from featurestore.errors import AccessError, DamageError, LakeError
from featurestore.storage.bucket_errors import causes, explain

ADVICE = "run slidelake verify, then slidelake repair"
# Numbers of the operating system's errors that damage can cause; all others are no damage.
OF_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EOVERFLOW}
LANCE_NUMBER = re.compile(r"\(os error (\d+)\)")
SOURCE_PLACE = re.compile(r",?\s*(at )?\S*\.rs:\d+(:\d+)?")
LONGEST = 200


class Explaining(Protocol):
    """A `Store`, or any other object that explains the errors of a lake's storage."""

    def explained(self, error: BaseException) -> LakeError | None:
        """Return the error to raise if stored files may be whole; None if it is damage."""


def no_access(error: BaseException) -> AccessError | None:
    """Return the AccessError for an error of a local file system; None if it is damage.

    >>> no_access(OSError(errno.ENOENT, "gone")), no_access(OSError(errno.EMFILE, ""))
    (None, AccessError("it can't be read or written now: Too many open files"))
    """
    for cause in causes(error):
        number = cause.errno if isinstance(cause, OSError) else None
        if number is None and (match := LANCE_NUMBER.search(str(cause))):
            number = int(match[1])
        if number is not None:
            if number in OF_DAMAGE:
                return None
            return AccessError(f"it can't be read or written now: {os.strerror(number)}")
    return None


def reason_of(error: BaseException) -> str:
    r"""Return the text of an error in one line, without places in Lance's source.

    >>> reason_of(ValueError("bad page, /rust/x-1.0/src/y.rs:12:3\nand more"))
    'bad page'
    """
    line = SOURCE_PLACE.sub("", str(error).strip().partition("\n")[0]).strip(" ,.:")
    return line[:LONGEST] or type(error).__name__


class LakeUri:
    """Explanation of errors of files at a URI without a `Store`."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def explained(self, error: BaseException) -> LakeError | None:
        """Return the error to raise if stored files may be whole; None if it is damage."""
        local = "://" not in self._uri or self._uri.startswith("file://")
        return no_access(error) if local else explain(error, self._uri)


def is_of_lance(error: BaseException) -> bool:
    """Whether an error is Lance's own and was not translated yet."""
    text = str(error)
    panic = type(error).__name__ == "PanicException"
    return panic or "LanceError" in text or bool(SOURCE_PLACE.search(text))


def meaning_of(error: BaseException, store: Explaining, subject: str) -> LakeError:
    """Return the LakeError for an error of a read; its message names the read file or table."""
    if isinstance(error, AccessError):
        return error
    if (explanation := store.explained(error)) is not None:
        return (
            type(explanation)(f"{subject}: {explanation}")
            if isinstance(explanation, AccessError)
            else explanation
        )
    if isinstance(error, LakeError) and not isinstance(error, DamageError):
        return error
    text = str(error) if isinstance(error, LakeError) else reason_of(error)
    return DamageError(f"{subject}: {text}" if ADVICE in text else f"{subject}: {text}; {ADVICE}")


@contextmanager
def reading(store: Explaining, subject: str) -> Iterator[None]:
    """Turn any error of a read in the block into DamageError or AccessError, naming the file.

    Args:
        store: the lake's files.
        subject: name of what is read, for messages.

    Raises:
        DamageError: the stored file is damaged.
        AccessError: the file can't be read now, though it may be whole.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        raise meaning_of(error, store, subject) from error
