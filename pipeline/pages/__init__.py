"""HTML pages, each one file that needs no network: what they share, and those of the data.

In: a manifest's coverage, or a prepared data set. Out: `.html` files.
"""
