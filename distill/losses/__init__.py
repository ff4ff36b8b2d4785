"""Losses: pure functions of tensors, per sample, in float32."""
