"""Reports: one or several runs on an HTML page."""
