"""Figures, drawn on matplotlib's Agg canvas."""
