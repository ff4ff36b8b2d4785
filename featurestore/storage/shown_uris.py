"""URIs as they may be printed and kept: without users, passwords and signed queries."""

import re

WEB = frozenset({"http", "https"})
_URL = re.compile(r"\w[\w+.-]*://[^\s'\"<>]+")


def shown(uri: str) -> str:
    """Return a URI that may be printed: without user, password, query and fragment.

    >>> shown("https://me:secret@host/a.svs?X-Amz-Signature=1f")
    'https://host/a.svs'
    >>> shown("/slides/what?.svs")
    '/slides/what?.svs'
    """
    if "://" not in uri:
        return uri
    plain = re.sub(r"(?<=://)[^/@]*@", "", uri)
    return re.split(r"[?#]", plain, maxsplit=1)[0] if protocol_of(uri) in WEB else plain


def shown_text(text: str) -> str:
    """Return a text, such as another library's error, with its URLs as they may be printed.

    >>> shown_text("cannot open sftp://me:secret@host/a (refused)")
    'cannot open sftp://host/a (refused)'
    """
    return _URL.sub(lambda url: shown(url[0]), text)


def protocol_of(uri: str) -> str:
    """Return the protocol of a URI; "file" for a path."""
    return uri.partition("://")[0].rpartition("::")[2] if "://" in uri else "file"
