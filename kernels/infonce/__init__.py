"""Fused InfoNCE: reference, plan by row panels, and the parts that fill it."""
