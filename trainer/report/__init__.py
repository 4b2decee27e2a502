"""The HTML page of one or more runs.

In: run folders. Out: one self-contained page.
"""
