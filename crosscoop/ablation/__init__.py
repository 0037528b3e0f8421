"""Ablations: a grid of runs from one YAML, and their table."""
