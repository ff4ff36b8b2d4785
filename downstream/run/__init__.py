"""Studies: cells of arms and folds, models trained in them, and results."""
