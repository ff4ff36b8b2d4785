"""Linear and nearest-neighbour probes, of patients and of labelled tiles.

A name is imported when it is first used: the options of `probe` stand in this folder, and the
command starts without numpy.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from downstream.probes.heads import INVERSE, fit_logistic

MODULES = {
    "INVERSE": "downstream.probes.heads",
    "fit_logistic": "downstream.probes.heads",
}
"""The module of every name on the door."""

__all__ = [
    "INVERSE",
    "fit_logistic",
]


def __getattr__(name: str) -> object:
    """Import a name of the door when it is first used."""
    if name not in MODULES:
        msg = f"module 'downstream.probes' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(MODULES[name]), name)
