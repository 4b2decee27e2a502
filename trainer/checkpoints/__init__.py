"""Weights and progress in files.

In: the state of a run, or a trained model of other programs. Out: files, and what they hold.
"""
