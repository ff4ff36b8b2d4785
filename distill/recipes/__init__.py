"""Recipes: which student, targets and loss terms a training has."""
