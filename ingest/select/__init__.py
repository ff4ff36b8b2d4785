"""Choosing which slides an ingest cuts, from what a user types."""
