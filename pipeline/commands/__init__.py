"""The steps of the pipeline on the command line, one a file.

In: options. Out: results printed. Heavy libraries are loaded when a step runs.
"""
