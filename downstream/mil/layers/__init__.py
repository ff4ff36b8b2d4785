"""Layers that several models share, here and in distillation: pure torch, sizes as arguments."""

from downstream.mil.layers.attention import MultiHeadAttention
from downstream.mil.layers.teacher_fusion import TeacherGate, TokenBlock

__all__ = [
    "MultiHeadAttention",
    "TeacherGate",
    "TokenBlock",
]
