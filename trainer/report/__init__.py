"""The HTML page of one or more runs.

In: run folders. Out: one page that needs nothing from elsewhere.
"""
