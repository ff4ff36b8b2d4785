"""Distillation: many teachers' cached features in, one small student out, no teacher run again."""

from distill.errors import DistillError
from distill.recipes.recipe import Recipe, Term
from distill.recipes.recipe_table import RECIPES, make_recipe

__all__ = ["RECIPES", "DistillError", "Recipe", "Term", "make_recipe"]
