"""Checkpoints of `crosscoop fit`: what they hold, and whether they fit."""
