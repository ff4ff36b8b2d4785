"""Measures of predictions, their intervals, comparisons, and abstention."""
