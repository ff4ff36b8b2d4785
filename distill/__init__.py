"""Distillation: many teachers' cached features in, one small student out, no teacher run again.

A name is imported when it is first used, so that this package costs nothing to import.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill.errors import DistillError
    from distill.recipes.recipe import Recipe, Term
    from distill.recipes.recipe_table import RECIPES, make_recipe
    from distill.students.feature_students import build_lake, extract
    from distill.targets.missing_stats import stats
    from distill.train.ray_train import distill

MODULES = {
    "RECIPES": "distill.recipes.recipe_table",
    "DistillError": "distill.errors",
    "Recipe": "distill.recipes.recipe",
    "Term": "distill.recipes.recipe",
    "build_lake": "distill.students.feature_students",
    "distill": "distill.train.ray_train",
    "extract": "distill.students.feature_students",
    "make_recipe": "distill.recipes.recipe_table",
    "stats": "distill.targets.missing_stats",
}
"""The module of every name on the door."""

__all__ = [
    "RECIPES",
    "DistillError",
    "Recipe",
    "Term",
    "build_lake",
    "distill",
    "extract",
    "make_recipe",
    "stats",
]


def __getattr__(name: str) -> object:
    """Import a name of the door when it is first used."""
    if name not in MODULES:
        msg = f"module 'distill' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(MODULES[name]), name)
