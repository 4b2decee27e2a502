"""What the steps of the pipeline print.

In: results of a step. Out: tables for the terminal.
"""
