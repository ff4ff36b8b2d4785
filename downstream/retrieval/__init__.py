"""The tiles nearest to a tile, the slides nearest to a slide."""
