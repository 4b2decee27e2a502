"""Progress of a run, and its curves: what a checkpoint holds beside tensors.

`CurvePoint`, `EpochResult` and `SkippedStep` are also the entries of `history.json` and
`divergence.jsonl`. A field that older runs did not write is None for them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pipeline import storage


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """A point of the training curve, over the steps since the previous point."""

    step: storage.Ordinal
    """Steps done in the run, from 1."""
    epoch: storage.Ordinal
    loss: storage.Number | None = None
    """Mean over the clips of steps that were not skipped; None without any."""
    lr: storage.Amount | None = None
    """Of the last step."""
    grad_norm: storage.Amount | None = None
    """Of the last step; None if it is not finite."""
    num_bad_steps: storage.Count = 0
    """Skipped steps."""
    clips_per_s: storage.Amount | None = None
    data_wait_share: storage.Amount | None = None
    """Share of the time that the first rank waited for batches."""
    peak_memory_bytes: storage.Count | None = None
    """Of the first rank's GPU; None without one."""
    mfu: storage.Amount | None = None
    """Model-FLOP utilisation, the share of the GPU's peak FLOPs; None if the peak is unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochResult:
    """A finished epoch and its evaluation; undefined metrics are None."""

    epoch: storage.Ordinal
    step: storage.Ordinal
    """Steps done in the run."""
    train_loss: storage.Number | None = None
    eval_loss: storage.Number | None = None
    mAP: storage.Share | None  # noqa: N815 (the field's name for it)
    mAUC: storage.Share | None = None  # noqa: N815
    d_prime: storage.Number | None = None
    accuracy: storage.Share | None
    cumulative_mAP: storage.Share | None = None  # noqa: N815
    """mAP of the mean scores over all epochs so far: `cum_` in the authors' logs."""
    cumulative_mAUC: storage.Share | None = None  # noqa: N815
    cumulative_d_prime: storage.Number | None = None
    cumulative_accuracy: storage.Share | None = None
    train_s: storage.Amount | None = None
    eval_s: storage.Amount | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SkippedStep:
    """A step that was skipped: its loss or gradient was not finite, or the gradient too large."""

    step: storage.Ordinal
    epoch: storage.Ordinal
    loss: storage.Number | str
    """A string if it is not finite: JSON has no NaN or infinity."""
    grad_norm: storage.Number | str
    ids: tuple[str, ...] = ()
    """The step's clips."""
    partner_ids: tuple[str, ...] = ()
    """The clips drawn as their mixup partners, mixed or not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """One step, as all ranks see it."""

    loss_sum: storage.Number
    """Sum of the losses of the global batch."""
    num_clips: storage.Count
    """Clips in it."""
    gradient_norm: storage.Number
    is_bad: bool
    """Whether it was skipped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenWindow:
    """The steps since the last point of the curve, in a checkpoint between two points."""

    steps: list[StepResult] = field(default_factory=list)
    elapsed_s: storage.Amount = 0.0
    waited_s: storage.Amount = 0.0
    """Seconds that the first rank waited for batches."""
    flops: storage.Count = 0


@dataclass(kw_only=True, slots=True)
class Progress:
    """Progress of a run, as checkpoints save and restore it."""

    epoch: storage.Count = 1
    """The epoch in progress, from 1; one past the last once the run is finished."""
    epoch_step: storage.Count = 0
    """Steps done in the epoch."""
    step: storage.Count = 0
    """Steps done in the run."""
    loss_sum: storage.Number = 0.0
    """Sum of the losses of the epoch's clips so far."""
    num_clips: storage.Count = 0
    """Clips in that sum."""
    train_s: storage.Amount = 0.0
    """Seconds trained in the epoch so far."""
    steps: list[CurvePoint] = field(default_factory=list)
    epochs: list[EpochResult] = field(default_factory=list)
    window: OpenWindow = field(default_factory=OpenWindow)
    """The newest steps, which no point of the curve has yet."""
    bad_steps: list[SkippedStep] = field(default_factory=list)
    num_bad_in_a_row: storage.Count = 0
    """Skipped steps since the last good one."""
    has_gone_back: bool = False
    """Whether the run has diverged and gone back to an earlier checkpoint."""

    def copy(self) -> "Progress":
        """A snapshot; list entries are shared, as they never change."""
        return replace(
            self, steps=[*self.steps], epochs=[*self.epochs], bad_steps=[*self.bad_steps]
        )


def best_epoch(epochs: Sequence[EpochResult], metric: str) -> EpochResult:
    """The epoch with the highest value of a metric, the earlier of two that are equal.

    A metric that is undefined, None, is below all others.
    """

    def value(result: EpochResult) -> float:
        number: float | None = getattr(result, metric)
        return -math.inf if number is None else number

    return max(epochs, key=value)
