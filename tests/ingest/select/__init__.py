"""Tests of choosing slides."""
