"""Tests of slide encoders."""
