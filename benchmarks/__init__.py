"""Comparisons of crosscoop with its alternatives: `python -m benchmarks`."""
