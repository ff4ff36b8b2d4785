"""Tests of tissue and masks."""
