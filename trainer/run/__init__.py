"""The run folder: what a run writes, and who may write it.

In: a recipe and the progress of a run. Out: run.json, history, curves; checks before a start.
"""
