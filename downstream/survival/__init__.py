"""Survival: models on pooled features, heads and losses, curves and scores."""

from downstream.survival.survival_extra import has_scikit_survival

__all__ = [
    "has_scikit_survival",
]
