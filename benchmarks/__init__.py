"""Measurements of speed; see README.md. Run one as `python -m benchmarks.store`."""
