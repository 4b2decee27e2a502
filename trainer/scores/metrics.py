"""Metrics of scores: mAP, mAUC, d-prime and accuracy; AP, AUC and d-prime of each class.

In: the 0/1 targets and the scores of an evaluation, both `[N, C]`, and the C labels. Steps: sort
the scores of each class once, rank its positives among all clips, and compute the average precision
and the ROC AUC from these ranks. Out: a `Metrics`, whose `to_json` is written beside the
predictions. It never holds NaN: an undefined metric is None.

N clips, C classes, P positive clips of one class.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline import storage

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.floating[Any]]

METRICS = ("mAP", "mAUC", "d_prime", "accuracy")
"""Fields of `Metrics` that sum up an evaluation, in display order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassMetrics:
    """The metrics of one class; None where undefined."""

    label: str
    num_positives: storage.Count
    AP: storage.Share | None
    """None without a positive clip."""
    AUC: storage.Share | None
    """None without a positive or without a negative clip."""
    d_prime: storage.Number | None
    """None without an AUC, and for an AUC of exactly 0 or 1, where it is infinite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """The metrics of one set of predictions; None where undefined."""

    num_clips: storage.Count
    mAP: storage.Share | None  # noqa: N815 (the field's name for it)
    """Mean AP over the classes that have a positive clip."""
    mAUC: storage.Share | None  # noqa: N815
    """Mean AUC over the classes that have both a positive and a negative clip."""
    d_prime: storage.Number | None
    """d-prime of mAUC, as in the paper; not the mean of the classes' d-primes."""
    accuracy: storage.Share | None
    """Share of the clips whose highest-scoring class is among their labels; None if no clip has a
    label."""
    chance_mAP: storage.Share | None  # noqa: N815
    """mAP of random scores: the mean share of positives over the classes that count in mAP."""
    num_classes_left_out: storage.Count
    """Classes without a positive clip, which count in neither mean."""
    per_class: tuple[ClassMetrics, ...]

    @property
    def is_unlabelled(self) -> bool:
        """Whether no clip has a label, so that no metric is defined."""
        return not any(entry.num_positives for entry in self.per_class)

    def wrong_mean(self) -> str | None:
        """The name of a mean that does not follow from the classes; None if all do."""
        means = {
            "mAP": (self.mAP, _mean(entry.AP for entry in self.per_class)),
            "mAUC": (self.mAUC, _mean(entry.AUC for entry in self.per_class)),
        }
        for name, (stated, computed) in means.items():
            if stated is None or computed is None:
                is_right = stated is computed
            else:
                is_right = math.isclose(stated, computed, abs_tol=1e-6)
            if not is_right:
                return name
        return None

    def to_json(self) -> dict[str, Any]:
        """As JSON types, undefined values as null."""
        values = asdict(self)
        values["per_class"] = list(values["per_class"])
        return values


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PositiveRanks:
    """Where the P positive clips of one class stand among all its N clips, P >= 0.

    The three arrays are `[P]`, from the lowest-scoring positive to the highest.
    """

    num_clips: int
    num_below: NDArray[np.intp]
    """Clips that score less."""
    num_not_above: NDArray[np.intp]
    """Clips that score less or the same, itself included."""
    num_positives_from: NDArray[np.intp]
    """Positive clips that score the same or more, itself included."""

    @property
    def num_positives(self) -> int:
        return len(self.num_below)


def rank_positives(targets: ArrayLike, scores: ArrayLike) -> PositiveRanks:
    """Rank the positives of one class; targets `[N]` 0/1, scores `[N]` without NaN."""
    values = np.asarray(scores)
    positives = np.sort(values[np.asarray(targets, dtype=bool)])
    # Sorting values is several times faster than an argsort; bisection then finds the few
    # positives.
    ordered = np.sort(values)
    return PositiveRanks(
        num_clips=len(values),
        num_below=np.searchsorted(ordered, positives, side="left"),
        num_not_above=np.searchsorted(ordered, positives, side="right"),
        num_positives_from=len(positives) - np.searchsorted(positives, positives, side="left"),
    )


def average_precision(ranks: PositiveRanks) -> float | None:
    """Average precision as scikit-learn defines it; None without a positive clip.

    That is the sum over the distinct scores of the gain in recall times the precision, without
    interpolation: clips with equal scores enter together. Every positive adds 1/P to the recall, so
    it equals the mean over the positives of the precision at their score.
    """
    if ranks.num_positives == 0:
        return None
    return float(np.mean(ranks.num_positives_from / (ranks.num_clips - ranks.num_below)))


def roc_auc(ranks: PositiveRanks) -> float | None:
    """Area under the ROC curve; None without a positive or without a negative clip.

    The probability that a positive clip scores above a negative one, ties counting one half: the
    Mann-Whitney statistic of the positives' midranks.
    """
    num_positives = ranks.num_positives
    num_pairs = num_positives * (ranks.num_clips - num_positives)
    if num_pairs == 0:
        return None
    rank_sum = float(np.sum(ranks.num_below + ranks.num_not_above + 1)) / 2
    return (rank_sum - num_positives * (num_positives + 1) / 2) / num_pairs


def d_prime(auc: float | None) -> float | None:
    """sqrt(2) * Phi^-1(AUC): the distance, in standard deviations, of two equal Gaussians.

    None where it is infinite (AUC of 0 or 1): JSON has no infinity, and one perfect class would
    swamp any mean. The AUC beside it tells the two cases apart.
    """
    if auc is None or not 0 < auc < 1:
        return None
    return math.sqrt(2) * NormalDist().inv_cdf(auc)


def top1_accuracy(targets: ArrayLike, scores: ArrayLike) -> float | None:
    """Share of the clips whose highest-scoring class is among their labels; both `[N, C]`.

    On single-label data this is accuracy. If classes tie, the first counts. None if no clip has a
    label.
    """
    positive = np.asarray(targets, dtype=bool)
    if not positive.any():
        return None
    best = np.argmax(np.asarray(scores), axis=1)
    return float(np.mean(positive[np.arange(len(best)), best]))


def evaluate_scores(targets: ArrayLike, scores: ArrayLike, labels: Sequence[str]) -> Metrics:
    """All metrics of one evaluation: targets `[N, C]` of 0 and 1, scores `[N, C]`, C labels.

    The metrics depend only on the order of the scores, so logits and sigmoid outputs give the same
    unless float32 saturates. Raises ValueError for shapes that do not fit, for targets other than
    0 and 1, and for NaN scores, naming the first such class.
    """
    positive, values = _checked(targets, scores, labels)
    per_class = tuple(
        _class_metrics(label, class_positive, class_values)
        for label, class_positive, class_values in zip(
            labels,
            # One class per contiguous row: sorting strided columns takes twice as long.
            np.ascontiguousarray(positive.T),
            np.ascontiguousarray(values.T),
            strict=True,
        )
    )
    mean_auc = _mean(metrics.AUC for metrics in per_class)
    scored = [metrics for metrics in per_class if metrics.AP is not None]
    return Metrics(
        num_clips=len(positive),
        mAP=_mean(metrics.AP for metrics in scored),
        mAUC=mean_auc,
        d_prime=d_prime(mean_auc),
        accuracy=top1_accuracy(positive, values),
        chance_mAP=_mean(metrics.num_positives / len(positive) for metrics in scored),
        num_classes_left_out=len(per_class) - len(scored),
        per_class=per_class,
    )


def _class_metrics(label: str, positive: BoolArray, values: FloatArray) -> ClassMetrics:
    ranks = rank_positives(positive, values)
    auc = roc_auc(ranks)
    return ClassMetrics(
        label=label,
        num_positives=ranks.num_positives,
        AP=average_precision(ranks),
        AUC=auc,
        d_prime=d_prime(auc),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of the defined values, None if none is."""
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None


def _checked(
    targets: ArrayLike, scores: ArrayLike, labels: Sequence[str]
) -> tuple[BoolArray, FloatArray]:
    """Check that the inputs fit each other; returns them as bool and float arrays."""
    target_array, score_array = np.asarray(targets), np.asarray(scores)
    if target_array.ndim != 2 or 0 in target_array.shape:
        raise ValueError(f"targets: must be [clips, classes], got shape {target_array.shape}")
    if score_array.shape != target_array.shape:
        raise ValueError(
            f"scores: must have the targets' shape {target_array.shape}, got {score_array.shape}"
        )
    if len(labels) != target_array.shape[1]:
        raise ValueError(f"labels: must be {target_array.shape[1]} names, got {len(labels)}")
    positive = target_array.astype(bool)
    if not np.array_equal(positive, target_array):
        raise ValueError("targets: must be 0 or 1, got other values")
    if score_array.dtype not in (np.float32, np.float64):
        score_array = score_array.astype(np.float64)
    has_nan = np.isnan(score_array).any(axis=0)
    if has_nan.any():
        first = labels[int(np.argmax(has_nan))]
        raise ValueError(
            f"scores: must be numbers, got NaN for {has_nan.sum()} classes, first {first!r}"
        )
    return positive, score_array
