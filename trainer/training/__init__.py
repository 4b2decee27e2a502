"""The training loop.

In: a recipe, a prepared data set and the ranks. Out: a trained model in a run folder.
"""
