"""Aggregators: from the features of a bag's tiles to one vector."""
