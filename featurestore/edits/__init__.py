"""Slides, teachers and annotations taken out of a lake or renamed."""

from featurestore.edits.drop_and_rename import Edited, drop, rename

__all__ = [
    "Edited",
    "drop",
    "rename",
]
