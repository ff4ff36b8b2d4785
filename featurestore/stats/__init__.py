"""Statistics of a teacher's features, and the PHI-S rotation."""
