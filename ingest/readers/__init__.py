"""Slide readers: pixels and facts of a slide, whatever its format is."""
