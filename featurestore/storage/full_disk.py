"""A full disk or quota becomes one error, in one line, wherever something is written."""

import contextlib
import errno
from collections.abc import Iterator

from featurestore.errors import LakeError

CODES = (errno.ENOSPC, errno.EDQUOT)
# Lance, Ray and a child process pass on the text alone.
TEXTS = ("No space left on device", "os error 28)", "Disk quota exceeded", "os error 122)")


class DiskFullError(LakeError, OSError):
    """Raised where a file can't be written for lack of space; what was committed stays.

    Examples:
        >>> issubclass(sl.DiskFullError, sl.LakeError), issubclass(sl.DiskFullError, OSError)
        (True, True)
    """


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error or one of its causes means a full disk or quota."""
    looked_at: set[int] = set()
    while error is not None and id(error) not in looked_at:
        looked_at.add(id(error))
        if isinstance(error, DiskFullError) or getattr(error, "errno", None) in CODES:
            return True
        if any(text in str(error) for text in TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False


def disk_full_error(error: BaseException, place: str) -> DiskFullError | None:
    """Return a DiskFullError of one line if an error means a full disk, else None.

    Args:
        error: any error.
        place: file or folder that was written to.
    """
    if not is_disk_full(error):
        return None
    if isinstance(error, DiskFullError):
        return error
    return DiskFullError(
        f"no space left on the disk, or in the quota, of {place}; what was committed is as it was: "
        "free some space (`slidelake vacuum LAKE` removes old versions and what killed jobs left) "
        "and run the same command again"
    )


@contextlib.contextmanager
def naming_full_disk(place: str) -> Iterator[None]:
    """Raise DiskFullError, which names the place, for whatever error of a full disk is inside."""
    try:
        yield
    except Exception as error:
        clear = disk_full_error(error, place)
        if clear is None or clear is error:
            raise
        raise clear from error
