"""Models in and out of run folders.

In: a checkpoint of another program, or a run. Out: a run, or a folder that transformers loads.
"""
