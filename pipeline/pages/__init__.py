"""HTML pages, each one file that needs no network: what they share, and those of the data."""
