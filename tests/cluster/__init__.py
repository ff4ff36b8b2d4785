"""Tests of Ray sessions, progress and jobs."""
