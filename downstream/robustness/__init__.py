"""How far a column of features tells biology from sites: the measures of a robustness passport."""
