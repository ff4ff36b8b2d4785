"""Measures of embeddings: fidelity, readouts, similarity and robustness."""
