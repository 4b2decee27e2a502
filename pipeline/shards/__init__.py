"""Clips to WebDataset tars.

In: a manifest and the audio. Out: tars, and a part file for each finished tar.
"""
