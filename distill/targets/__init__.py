"""Targets: cached features of teachers, normalised."""
