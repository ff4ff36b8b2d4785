"""Pixels of stored tiles: decoded to the size of a network, and kept on a local disk."""
