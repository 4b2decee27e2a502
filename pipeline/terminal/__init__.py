"""What a terminal shows while a step runs.

In: counts and rates. Out: a progress bar, or JSON lines.
"""
