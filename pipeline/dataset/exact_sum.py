"""Sums of millions of numbers without rounding, so that neither order nor pieces matter.

In: arrays of float64. Out: the exact sum, rounded once: what `math.fsum` gives for all numbers.
"""

from collections import Counter
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

_MANTISSA_BITS = 53
_LOW_BITS = 26


class ExactSum:
    """The sum of all numbers added."""

    def __init__(self) -> None:
        self._by_exponent: Counter[int] = Counter()
        self._not_finite = 0.0

    def add(self, numbers: NDArray[np.float64]) -> None:
        """Add numbers; at most 2^36 at once."""
        is_finite = np.isfinite(numbers)
        if not is_finite.all():
            self._not_finite += float(numbers[~is_finite].sum())
            numbers = numbers[is_finite]
        fractions, exponents = np.frexp(numbers)
        mantissas = np.ldexp(fractions, _MANTISSA_BITS).astype(np.int64)
        for exponent in np.unique(exponents).tolist():
            chosen = mantissas[exponents == exponent]
            # In two halves, whose sums do not overflow.
            high = int((chosen >> _LOW_BITS).sum()) << _LOW_BITS
            low = int((chosen & (2**_LOW_BITS - 1)).sum())
            self._by_exponent[exponent] += high + low

    def value(self) -> float:
        """The sum; infinite or NaN if a number was."""
        if self._not_finite:  # NaN is true
            return self._not_finite
        total = sum(
            (
                mantissa * Fraction(2) ** (exponent - _MANTISSA_BITS)
                for exponent, mantissa in self._by_exponent.items()
            ),
            Fraction(0),
        )
        return float(total)
