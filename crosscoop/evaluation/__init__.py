"""Inference protocols and metrics."""
