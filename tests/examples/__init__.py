"""Tests of the synthetic cohort and the demo."""
