"""Smaller columns: features as codes of one byte, decoded to float16 where they are read."""
