"""Ranges of numbers in documents, which pydantic checks when a document is read."""

import math
from typing import Annotated

from annotated_types import Interval

Count = Annotated[int, Interval(ge=0, lt=2**63)]
"""A number of things, as NumPy and Arrow hold it."""
Ordinal = Annotated[int, Interval(ge=1, lt=2**63)]
"""A place in an order, counted from 1."""
Number = Annotated[float, Interval(gt=-math.inf, lt=math.inf)]
"""A finite number: an integer of 400 digits reads as infinity."""
Amount = Annotated[float, Interval(ge=0, lt=math.inf)]
"""A finite number that is not negative, such as seconds."""
Share = Annotated[float, Interval(ge=0, le=1 + 1e-9)]
"""A part of a whole, such as a precision; rounding may add to it."""
