"""Which members an ensemble has, and how often each counts: chosen on clips of its own.

In: predictions of M members on clips that are not reported. Steps: greedy forward selection with
replacement (Caruana et al., 2004): start with the best member, then add, time after time, the
member with which the mean scores best. Out: how often each was picked, up to the pick after which
the mean was best.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeline.errors import UserError
from trainer.scores.metrics import evaluate_scores
from trainer.scores.predictions import Predictions
from trainer.studies.ensemble.average import (
    check_alike,
    to_scores,
    to_values,
    weighted_mean,
)
from trainer.studies.ensemble.settings import Average, ChoiceMetric

_logger = logging.getLogger(__name__)

Counts = dict[str, int]
"""How often each member counts, by its name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pick:
    """A pick, and the score of the mean from then on."""

    member: str
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The outcome of the picks."""

    counts: Counts
    """Of every member, 0 for those that were left out."""
    picks: tuple[Pick, ...]
    """All of them; only those up to the best score count."""


def choose(
    members: Mapping[str, Predictions],
    num_picks: int,
    *,
    metric: ChoiceMetric = "mAP",
    average: Average = "scores",
) -> Choice:
    """Pick members, with replacement; the outcome does not depend on their order.

    Args:
        members: their predictions on the clips to choose on, by their names.
        num_picks: how many picks to make.
        metric: what the mean is to score best in.
        average: what is averaged.

    Raises:
        UserError: the members cannot be averaged, or the metric is undefined on these clips.
    """
    check_alike(members)
    # Sums of floats depend on their order.
    names = sorted(members)
    first = members[names[0]]
    values = {name: to_values(members[name], average) for name in names}

    def score(counts: Counts) -> float:
        mean = weighted_mean((values[name], counts[name]) for name in names if counts[name])
        scores = to_scores(mean, average, first.source.score_function)
        value = getattr(evaluate_scores(first.targets, scores, first.labels), metric)
        if value is None:
            raise UserError(
                "--choose-on",
                f"{metric} is undefined on the clips {first.name!r}, as none has a label",
                "choose on other clips",
            )
        return float(value)

    return _pick(names, num_picks, score)


def _pick(names: list[str], num_picks: int, score: Callable[[Counts], float]) -> Choice:
    counts = dict.fromkeys(names, 0)
    known: dict[tuple[int, ...], float] = {}
    best: tuple[float, Counts] | None = None
    picks = list[Pick]()
    for _ in range(num_picks):
        candidates = {name: {**counts, name: counts[name] + 1} for name in names}
        keys = {name: _shares(candidate) for name, candidate in candidates.items()}
        for name, key in keys.items():
            if key not in known:
                known[key] = score(candidates[name])
        # The first of two that are equal, by name.
        name = max(names, key=lambda name: known[keys[name]])
        counts, value = candidates[name], known[keys[name]]
        picks.append(Pick(member=name, score=value))
        _logger.debug("pick %d: %s, %.4f", len(picks), name, value)
        if best is None or value > best[0]:
            best = value, counts
    assert best is not None
    return Choice(counts=best[1], picks=tuple(picks))


def _shares(counts: Counts) -> tuple[int, ...]:
    """The same for counts that make the same mean."""
    divisor = math.gcd(*counts.values())
    return tuple(count // divisor for count in counts.values())
