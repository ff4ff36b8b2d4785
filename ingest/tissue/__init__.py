"""Finding tissue on a slide: built-in methods, users' masks, and users' segmenters."""
