"""The training loop.

In: a recipe, a prepared data set and a world of ranks. Out: a trained model in a run folder.
"""
