"""`crosscoop report`: one or more runs as one HTML page."""

from crosscoop.report.page import report

__all__ = ["report"]
