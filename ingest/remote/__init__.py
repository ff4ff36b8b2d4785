"""Slides at URLs: copies, partial files, and errors of servers."""
