"""Commits to a lake's tables: what a worker wrote becomes visible, all of it or nothing."""
