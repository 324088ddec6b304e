"""Integrals along the path from a baseline to a sentence's embeddings: points and contributions."""
