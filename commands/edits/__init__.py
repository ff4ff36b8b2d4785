"""Commands that annotate a lake, drop parts of it, or rename them."""
