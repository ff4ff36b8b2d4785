"""Tests of encoders, weights and extract."""
