"""Keeping a lake: what is checked, recorded, copied and freed."""
