"""Tests of verify, repair, restore, copy, compact and vacuum."""
