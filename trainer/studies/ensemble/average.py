"""The mean of members' outputs: of their scores, of their logits, or of their ranks.

In: predictions of M members on the same clips, and how often each counts. Out: the ensemble's.

`scores`: the mean of sigmoid or softmax outputs, as the AST authors publish it. `logits`: the mean
of the logits, computed back from the stored scores, and the same function of it: for softmax
outputs, which fix a clip's logits up to a constant, that is their normalised geometric mean.
`ranks`: for each class, the mean of the clips' midranks, as a share of N; so it depends on which
clips are scored together, and the scores of different classes no longer compare.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from pipeline.errors import UserError
from trainer.scores.predictions import Predictions, Source
from trainer.studies.ensemble.settings import Average

_logger = logging.getLogger(__name__)

LOWEST = 2.0**-150
"""What a stored score of 0 is taken for: half the smallest number that float32 has."""
HIGHEST = 1 - 2.0**-25
"""What a stored sigmoid of 1 is taken for: float32 rounds all above to 1, logits above 17.3."""

Values = NDArray[np.float64]


def average_predictions(
    members: Mapping[str, Predictions],
    average: Average = "scores",
    counts: Mapping[str, int] | None = None,
) -> Predictions:
    """The mean of members, by their names.

    Args:
        members: their predictions.
        average: of what.
        counts: how often each counts; None: once.

    Raises:
        UserError: the members differ in clips, labels or targets, or some scores are sigmoid
            outputs and others softmax outputs.
    """
    check_alike(members)
    counts = counts or dict.fromkeys(members, 1)
    counted = {name: count for name, count in counts.items() if count > 0}
    first = next(iter(members.values()))
    function = first.source.score_function
    mean = weighted_mean((to_values(members[name], average), n) for name, n in counted.items())
    source = Source(
        loss=first.source.loss,
        scores=function,
        num_members=len(counted),
        average=None if average == "scores" else average,
    )
    return replace(first, scores=to_scores(mean, average, function), source=source)


def check_alike(members: Mapping[str, Predictions]) -> None:
    """Refuse members whose predictions cannot be averaged.

    Raises:
        UserError: as `average_predictions`.
    """
    (first_name, first), *others = members.items()
    function = first.source.score_function
    for name, other in others:
        for aspect, equal, remedy in (
            ("clips", other.ids == first.ids, ""),
            ("labels", other.labels == first.labels, ""),
            ("targets", np.array_equal(other.targets, first.targets), ""),
            ("losses", other.source.loss == first.source.loss, ""),
            (
                f"scores ({function} and {other.source.score_function})",
                other.source.score_function == function,
                f"score {name} again: `evaluate --scores {function}`",
            ),
        ):
            if not equal:
                raise UserError(
                    "",
                    f"{first_name} and {name}: their predictions on {first.name!r} cannot be "
                    f"averaged, as they have different {aspect}",
                    remedy,
                )


def weighted_mean(parts: Iterable[tuple[Values, int]]) -> Values:
    """The mean of values `[N, C]`, each with the number of times that it counts."""
    total, num = None, 0
    for values, count in parts:
        total = values * count if total is None else total + values * count
        num += count
    assert total is not None
    return np.asarray(total / num)


def to_values(member: Predictions, average: Average) -> Values:
    """What is averaged of a member's scores, `[N, C]`."""
    scores = member.scores.astype(np.float64)
    if average == "scores":
        return scores
    if average == "ranks":
        return np.asarray(rankdata(scores, axis=0)) / len(scores)
    if member.source.score_function == "softmax":
        return np.asarray(np.log(np.maximum(scores, LOWEST)))
    scores = scores.clip(LOWEST, HIGHEST)
    return np.asarray(np.log(scores) - np.log1p(-scores))


def to_scores(mean: Values, average: Average, function: str) -> NDArray[np.float32]:
    """The scores of a mean, `[N, C]`, from 0 to 1."""
    if average == "logits":
        if function == "softmax":
            powers = np.exp(mean - mean.max(axis=1, keepdims=True))
            mean = powers / powers.sum(axis=1, keepdims=True)
        else:
            mean = _sigmoid(mean)
    return mean.astype(np.float32)


def warn_of_saturation(members: Mapping[str, Predictions]) -> None:
    """Warn of scores whose logits are lost, as float32 rounded them to 0 or 1."""
    for name, member in members.items():
        scores = member.scores
        lost = scores == 0
        if member.source.score_function == "sigmoid":
            lost |= scores >= 1
        if num_lost := int(np.count_nonzero(lost)):
            _logger.warning(
                "%s: the logits of %d of %d scores are lost, as float32 rounded them to 0 or 1; "
                "they count as %.1f or %.1f in the mean of logits",
                *(name, num_lost, scores.size, np.log(LOWEST), -np.log1p(-HIGHEST)),
            )


def _sigmoid(logits: Values) -> Values:
    powers = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1, powers) / (1 + powers))
