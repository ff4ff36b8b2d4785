"""Tests of losses and targets."""
