"""Mean and standard deviation of a score over runs, seeds or folds."""

import statistics
from collections.abc import Sequence


def mean_and_deviation(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation.

    Both are None if there are no values or one is None; a single value has no deviation.
    """
    defined = [value for value in values if value is not None]
    if not defined or len(defined) < len(values):
        return None, None
    return statistics.fmean(defined), statistics.stdev(defined) if len(defined) > 1 else None
