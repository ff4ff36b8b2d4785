"""The training loop, its data, and its workers on Ray Train."""
