"""Tables of patients and slides that a reader sorts: on pages of runs, predictions and heatmaps."""
