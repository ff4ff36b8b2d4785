"""The tables of a lake: what commits write, and ranges of rows read back."""
