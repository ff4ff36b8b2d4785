"""Tests of survival models."""
