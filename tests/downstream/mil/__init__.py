"""Tests of bags' models."""
