"""Fitted models that a run keeps, and their use on other slides."""
