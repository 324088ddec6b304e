"""Benchmarks: `make bench`, `make bench-gpu`. Peers are installed for them alone."""
