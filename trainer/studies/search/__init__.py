"""A search for better settings of a recipe.

In: a recipe, a space of settings, and clips to choose by. Out: a run for each choice of settings,
a table of them, and the recipe of the best.
"""
