"""Scores of tiles: the table of them, how they are computed, and how a lake gets those it lacks."""
