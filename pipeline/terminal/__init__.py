"""Output to the terminal while a step runs.

In: counts, rates, sizes. Out: a progress bar or JSON lines; tables; numbers with units.
"""
