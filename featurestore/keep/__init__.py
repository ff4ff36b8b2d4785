"""Keeping a lake: what is checked, recorded, copied and freed, and the way back."""
