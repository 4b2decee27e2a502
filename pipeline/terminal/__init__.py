"""What a terminal shows while a step runs.

In: counts, rates, sizes. Out: a progress bar or JSON lines; tables; numbers with units.
"""
