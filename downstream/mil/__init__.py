"""Models of bags of tiles: aggregators, their losses, training and prediction."""
