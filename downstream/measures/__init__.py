"""Measures of predictions, their intervals, comparisons, and abstention."""

from downstream.measures.class_measures import Measure, measure_of
from downstream.measures.intervals import interval

__all__ = [
    "Measure",
    "interval",
    "measure_of",
]
