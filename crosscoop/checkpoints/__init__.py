"""Checkpoints of `crosscoop fit`: their contents, and whether they fit."""
