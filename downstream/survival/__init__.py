"""Survival: models on pooled features, heads and losses, curves and scores."""
