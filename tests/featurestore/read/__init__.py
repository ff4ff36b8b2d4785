"""Tests of bags, streams and other reads."""
