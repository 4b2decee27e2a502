"""The settings of a run.

In: a TOML file and overrides. Out: a recipe, checks and warnings.
"""
