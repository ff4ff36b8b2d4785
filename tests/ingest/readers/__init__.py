"""Tests of slide readers."""
