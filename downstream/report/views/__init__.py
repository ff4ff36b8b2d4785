"""Pictures of a run's predictions with captions."""
