"""Runs on one HTML page."""
