"""Uniformity of embeddings: the log of the mean Gaussian potential of all pairs of rows."""
