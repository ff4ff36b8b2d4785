"""Protocols of other tools: their tasks, settings and measures."""
