"""Tests of the command: each command line and each option."""
