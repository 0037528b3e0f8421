"""Networks in files of other formats, for use without this package."""
