"""The steps of the pipeline on the command line, one per file.

In: options. Out: printed results. Heavy libraries are loaded when a step runs.
"""
