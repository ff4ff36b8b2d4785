"""Layers that several models share, here and in distillation: pure torch, sizes as arguments."""
