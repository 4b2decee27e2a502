"""Several runs as one: ensembles and cross-validation.

In: a recipe and its seeds, variants or folds. Out: runs, and the scores of their mean.
"""
