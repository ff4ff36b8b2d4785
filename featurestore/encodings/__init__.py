"""Vectors of slides and patients in a lake: what they are made of, written and read.

The class of an encoding is in `featurestore.tables.slide_encoding`. A name is imported when it is
first used: `lake` reads encodings, and this package reads lakes.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featurestore.encodings.sources import has_changed, sources_of
    from featurestore.encodings.writing import kept_rows, put_vectors
    from featurestore.tables.slide_encoding import (
        SlideEncoding,
        Unit,
        check_encoding_name,
        is_slide_encoding,
    )

MODULES = {
    "SlideEncoding": "featurestore.tables.slide_encoding",
    "Unit": "featurestore.tables.slide_encoding",
    "check_encoding_name": "featurestore.tables.slide_encoding",
    "has_changed": "featurestore.encodings.sources",
    "is_slide_encoding": "featurestore.tables.slide_encoding",
    "kept_rows": "featurestore.encodings.writing",
    "put_vectors": "featurestore.encodings.writing",
    "sources_of": "featurestore.encodings.sources",
}
"""The module of every name on the door."""

__all__ = [
    "SlideEncoding",
    "Unit",
    "check_encoding_name",
    "has_changed",
    "is_slide_encoding",
    "kept_rows",
    "put_vectors",
    "sources_of",
]


def __getattr__(name: str) -> object:
    """Import a name of the door when it is first used."""
    if name not in MODULES:
        msg = f"module 'featurestore.encodings' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(MODULES[name]), name)
