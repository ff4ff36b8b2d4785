"""Tests of studies on a lake."""
