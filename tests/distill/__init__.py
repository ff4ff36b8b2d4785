"""Tests of distillation."""
