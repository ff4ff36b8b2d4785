"""Looking after a lake: what its files must be, and the way back when they are not."""
