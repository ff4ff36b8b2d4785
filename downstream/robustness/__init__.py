"""How far a column of features knows biology from sites: the measures of a robustness passport.

A name is imported when it is first used: the options of `robustness` stand in this folder, and the
command starts without numpy.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from downstream.cohorts.outcomes import sites_of_barcodes
    from downstream.robustness.array_samples import array_passport
    from downstream.robustness.robustness_measures import MEASURES, RobustnessMeasure
    from downstream.robustness.robustness_spec import RobustnessError, RobustnessOptions

MODULES = {
    "MEASURES": "downstream.robustness.robustness_measures",
    "RobustnessError": "downstream.robustness.robustness_spec",
    "RobustnessMeasure": "downstream.robustness.robustness_measures",
    "RobustnessOptions": "downstream.robustness.robustness_spec",
    "array_passport": "downstream.robustness.array_samples",
    "sites_of_barcodes": "downstream.cohorts.outcomes",
}
"""The module of every name on the door."""

__all__ = [
    "MEASURES",
    "RobustnessError",
    "RobustnessMeasure",
    "RobustnessOptions",
    "array_passport",
    "sites_of_barcodes",
]


def __getattr__(name: str) -> object:
    """Import a name of the door when it is first used."""
    if name not in MODULES:
        msg = f"module 'downstream.robustness' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(MODULES[name]), name)
