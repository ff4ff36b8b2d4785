"""Tests of the vectors of slides and patients in a lake."""
