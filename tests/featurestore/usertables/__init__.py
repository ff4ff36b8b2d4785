"""Tests of users' tables and annotations."""
