"""Kernels of simcse_fast: arrays in, arrays out. Installed as simcse_fast.kernels."""
