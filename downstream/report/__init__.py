"""Pages, pictures and attention maps of runs and of a lake."""
