"""Readers of other tools' files: one module a tool."""
