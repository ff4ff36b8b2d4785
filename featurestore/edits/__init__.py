"""Slides, teachers and annotations taken out of a lake or renamed."""
