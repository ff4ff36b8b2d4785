"""Cells of a study: the patients, models and predictions of one arm on one fold."""
