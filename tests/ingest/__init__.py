"""Tests of slides, tiles and teachers."""
