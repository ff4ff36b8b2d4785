"""Tests of files from and for other tools."""
