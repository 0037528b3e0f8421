"""Comparisons of crosscoop with what one would use instead: `python -m benchmarks`."""
