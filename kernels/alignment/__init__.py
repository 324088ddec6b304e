"""Alignment of embeddings: the mean distance of positive pairs, to a power."""
