"""Training and tuning on Ray.

In: recipes and workers. Out: finished runs.
"""
