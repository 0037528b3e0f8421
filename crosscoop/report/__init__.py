"""`crosscoop report`: one run, or several compared, as one HTML page."""

from crosscoop.report.page import main, report

__all__ = ["main", "report"]
