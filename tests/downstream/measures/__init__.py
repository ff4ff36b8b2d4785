"""Tests of measures and intervals."""
