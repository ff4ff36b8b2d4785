"""Tests of the project itself: its imports, pages, packages and continuous integration."""
