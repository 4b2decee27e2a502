"""The settings of each run of a search, a pure function of space, seed and number.

`random` draws follow a scrambled Halton sequence: as few as eight leave no large gap in a range,
and more draws come after those before them, which stay the same. `grid` is every combination of
values.
"""

import itertools
import math

from scipy.stats import qmc

from pipeline.errors import UserError
from trainer.studies.search.space import Choice, Range, Space

MAX_RUNS = 10_000
"""The most runs of a search; more is a slip."""
_DRAWS_PER_RUN = 100
"""Draws after which a space counts as too small for so many different ones."""


def grid(space: Space) -> list[Choice]:
    """Every combination of the values, the last setting varying fastest.

    Raises:
        UserError: a range has no number of values, or there are too many combinations.
    """
    for dimension in space:
        if isinstance(dimension, Range):
            raise UserError(
                f"--space {dimension.setting}={dimension.text}",
                "a grid needs values, and a range has no end of them",
                f"add how many: {dimension.setting}={dimension.text}:5",
            )
    values = [dimension.values for dimension in space if not isinstance(dimension, Range)]
    num_runs = math.prod(map(len, values))
    if num_runs > MAX_RUNS:
        raise UserError("--strategy grid", f"{num_runs:,} combinations, more than {MAX_RUNS:,}")
    settings = [dimension.setting for dimension in space]
    return [dict(zip(settings, chosen, strict=True)) for chosen in itertools.product(*values)]


def num_combinations(space: Space) -> float:
    """How many combinations of values there are; infinite with a range."""
    counts = (
        math.inf if isinstance(dimension, Range) else len(dimension.values) for dimension in space
    )
    return math.prod(counts)


def draw(space: Space, *, seed: int, num: int) -> list[Choice]:
    """The first `num` different draws from the space.

    Raises:
        UserError: the space has not so many.
    """
    sequence = qmc.Halton(d=len(space), scramble=True, rng=seed)
    drawn: dict[str, Choice] = {}
    for _ in range(_DRAWS_PER_RUN):
        for shares in sequence.random(num):
            choice = {
                dimension.setting: dimension.at(float(share))
                for dimension, share in zip(space, shares, strict=True)
            }
            drawn.setdefault(repr(choice), choice)
            if len(drawn) == num:
                return list(drawn.values())
    raise UserError(
        f"--samples {num}",
        f"the space has only about {len(drawn)} different combinations",
        "lower it, or try them all: --strategy grid",
    )
