"""Imports and exports of trained models.

In: a checkpoint of another program, or a run. Out: a run, or a folder that transformers loads.
"""
