"""Comparing a lake with what was committed."""
