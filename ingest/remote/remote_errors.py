"""What went wrong with a slide that is not on this machine, in one line for its row.

No message holds a server's text or a URL's query: both may quote keys and signatures.
"""

import contextlib
import re
from collections.abc import Iterator

from featurestore import LakeError
from featurestore.storage import (
    DENIED,
    bucket_clients,
    causes,
    codes,
    explain,
    protocol_of,
    shown,
)
from ingest.errors import SlideError

BUCKETS = frozenset(bucket_clients.EXTRAS)
TRIES = 6
SILENT_S = 60.0  # a server that sends nothing for so long is given up
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
BROKEN = frozenset({"ClientConnectionError", "ClientPayloadError", "ConnectionError", "EOFError"})
SILENT = frozenset({"TimeoutError", "FSTimeoutError"})


class HttpStatusError(OSError):
    """An HTTP server answered with an error; `status` holds its code."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class ShortReadError(EOFError):
    """A server answered with other bytes than were requested."""


@contextlib.contextmanager
def as_slide_errors(uri: str) -> Iterator[None]:
    """Turn any error inside with the file at `uri` into a SlideError of one line."""
    try:
        yield
    except SlideError:
        raise
    except Exception as error:
        msg = f"{shown(uri)} {_explanation(error, uri)}"
        raise SlideError(msg) from error


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for one in causes(error) for kind in type(one).__mro__}


def _status(error: BaseException) -> int | None:
    statuses = (getattr(one, "status", None) for one in causes(error))
    return next((status for status in statuses if isinstance(status, int)), None)


def passes(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    if (status := _status(error)) is not None:
        return status in TRANSIENT
    return bool(_names(error) & (BROKEN | SILENT))


def _explanation(error: BaseException, uri: str) -> str:
    if isinstance(error, LakeError):
        return f"can't be read: {error}"
    if protocol_of(uri) in BUCKETS and (text := _bucket_said(error, uri)):
        return text
    if (status := _status(error)) is not None:
        return _status_said(status)
    names = _names(error)
    if "FileNotFoundError" in names:
        return "does not exist"
    if names & SILENT:
        return f"can't be read: no answer for {SILENT_S:g} s, at {TRIES} tries; is the server up?"
    if "ShortReadError" in names:
        return "can't be read: the server answers with other bytes than were requested"
    if names & BROKEN:
        kind = type(error).__name__
        return f"can't be read: no connection, or it breaks off ({kind}), at {TRIES} tries"
    text = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    return f"can't be read: {_without_queries(str(text))}"


def _bucket_said(error: BaseException, uri: str) -> str:
    error_codes = codes(error)
    if "FileNotFoundError" not in error_codes and error_codes & DENIED:
        return "can't be read: access is denied; the keys must allow to list and to get it"
    told_as = explain(error, shown(uri))
    return f"can't be read: {str(told_as).removeprefix(f'{shown(uri)}: ')}" if told_as else ""


def _status_said(status: int) -> str:
    if status in {404, 410}:
        return "does not exist"
    if status in {401, 403}:
        return f"can't be read: access is denied ({status}); is the URL signed, and still valid?"
    if status in {429, 503}:
        return f"can't be read: the server is too busy ({status}) at {TRIES} tries; run again later"
    if status >= 500:
        return f"can't be read: the server failed ({status}) at {TRIES} tries; run again later"
    return f"can't be read: the server answered {status}"


def _without_queries(text: str) -> str:
    return re.sub(r"(?<=://)[^/@\s]*@|[?&][\w.%-]+=[^\s'\"&]*", "", " ".join(text.split()))
