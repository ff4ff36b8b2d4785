"""Students that read columns of the lake: tiles in context, and a robust head on one column."""
