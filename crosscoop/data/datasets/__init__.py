"""The data sets that the package supports."""
