"""Linear and nearest-neighbour probes, of patients and of labelled tiles."""

from downstream.probes.heads import INVERSE, fit_logistic

__all__ = [
    "INVERSE",
    "fit_logistic",
]
