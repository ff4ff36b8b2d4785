"""Reading a lake for training: bags, pairs of magnifications, and streams of tiles.

A name is imported when it is first used, so that bags can be read without torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featurestore.read.pairs import child_cells, children_of, nesting
    from featurestore.read.stream import Stream

MODULES = {
    "Stream": "featurestore.read.stream",
    "child_cells": "featurestore.read.pairs",
    "children_of": "featurestore.read.pairs",
    "nesting": "featurestore.read.pairs",
}
"""The module of every name on the door."""

__all__ = [
    "Stream",
    "child_cells",
    "children_of",
    "nesting",
]


def __getattr__(name: str) -> object:
    """Import a name of the door when it is first used."""
    if name not in MODULES:
        msg = f"module 'featurestore.read' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(MODULES[name]), name)
