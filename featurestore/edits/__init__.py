"""Slides, teachers and annotations taken out of a lake or renamed, and columns of scores.

A name is imported when it is first used: `annotations` and `edits` import modules of each other.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featurestore.edits.drop_and_rename import Edited, drop, rename
    from featurestore.edits.lance_edits import NewColumn
    from featurestore.edits.score_columns import (
        ScoreColumn,
        commit_scores,
        rows_without_score,
        score_versions,
        tile_keys,
        write_scores,
    )

MODULES = {
    "Edited": "featurestore.edits.drop_and_rename",
    "NewColumn": "featurestore.edits.lance_edits",
    "ScoreColumn": "featurestore.edits.score_columns",
    "commit_scores": "featurestore.edits.score_columns",
    "drop": "featurestore.edits.drop_and_rename",
    "rename": "featurestore.edits.drop_and_rename",
    "rows_without_score": "featurestore.edits.score_columns",
    "score_versions": "featurestore.edits.score_columns",
    "tile_keys": "featurestore.edits.score_columns",
    "write_scores": "featurestore.edits.score_columns",
}
"""The module of every name on the door."""

__all__ = [
    "Edited",
    "NewColumn",
    "ScoreColumn",
    "commit_scores",
    "drop",
    "rename",
    "rows_without_score",
    "score_versions",
    "tile_keys",
    "write_scores",
]


def __getattr__(name: str) -> object:
    """Import a name of the door when it is first used."""
    if name not in MODULES:
        msg = f"module 'featurestore.edits' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(MODULES[name]), name)
