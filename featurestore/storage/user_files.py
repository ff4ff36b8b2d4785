"""A user's file at a path or a URL: in a bucket by the clients, settings and errors of a lake."""

from collections.abc import Iterator
from contextlib import contextmanager

import fsspec

from featurestore.storage.bucket_clients import EXTRAS, file_system
from featurestore.storage.bucket_errors import explain


def files_at(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a path or a URL, and the path in it.

    Raises:
        LakeError: the package of a bucket is not installed, or its settings are not valid.
    """
    protocol, url, _ = uri.partition("://")
    if url and protocol in EXTRAS:
        files = file_system(protocol)
        return files, files._strip_protocol(uri)
    place: tuple[fsspec.AbstractFileSystem, str] = fsspec.core.url_to_fs(uri)
    return place


@contextmanager
def bucket_errors_explained(uri: str) -> Iterator[None]:
    """Turn errors of the bucket of a URI into LakeErrors of one line; leave all others.

    Raises:
        LakeError: the bucket refuses, is missing, or can't be reached.
    """
    try:
        yield
    except Exception as error:
        if "://" in uri and (explanation := explain(error, uri)):
            raise explanation from error
        raise
