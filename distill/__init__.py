"""Distillation: many teachers' cached features in, one small student out, no teacher run again."""

from distill.errors import DistillError
from distill.recipes import RECIPES, Recipe, make_recipe

__all__ = ["RECIPES", "DistillError", "Recipe", "make_recipe"]
