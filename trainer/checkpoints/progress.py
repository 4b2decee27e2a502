"""How far a run is, and its curves: what a checkpoint holds beside tensors.

The three kinds of entries are those of `history.json` and `divergence.jsonl`, too. What an older
run did not write is None.
"""

from dataclasses import dataclass, field, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """A point of the training curve: the steps since the point before it."""

    step: int
    """Steps done in the run, from 1."""
    epoch: int
    loss: float | None = None
    """Mean over the clips of steps that were not skipped; None without any."""
    lr: float | None = None
    """Of the last step."""
    grad_norm: float | None = None
    """Of the last step; None where it is not finite."""
    num_bad_steps: int = 0
    """Steps that were skipped."""
    clips_per_s: float | None = None
    data_wait_share: float | None = None
    """Share of the time that the first rank waited for batches."""
    peak_memory_bytes: int | None = None
    """Of the first rank's GPU; None without one."""
    mfu: float | None = None
    """Share of the GPU's peak FLOPs; None where that is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochResult:
    """A finished epoch and its evaluation; a metric is None where it is undefined."""

    epoch: int
    step: int
    """Steps done in the run."""
    train_loss: float | None = None
    eval_loss: float | None = None
    mAP: float | None  # noqa: N815 (the field's name for it)
    mAUC: float | None = None  # noqa: N815
    d_prime: float | None = None
    accuracy: float | None
    cumulative_mAP: float | None = None  # noqa: N815
    """Of the mean of the scores of all epochs so far: `cum_` in the authors' logs."""
    cumulative_mAUC: float | None = None  # noqa: N815
    cumulative_d_prime: float | None = None
    cumulative_accuracy: float | None = None
    train_s: float | None = None
    eval_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SkippedStep:
    """A step that was not made: its loss or gradient was not finite, or too large."""

    step: int
    epoch: int
    loss: float | str
    """Text where it is not a finite number: JSON has no other."""
    grad_norm: float | str
    ids: tuple[str, ...] = ()
    """The step's clips."""
    partner_ids: tuple[str, ...] = ()
    """The clips that they were mixed with."""


@dataclass(kw_only=True, slots=True)
class Progress:
    """How far a run is: what is written, and resumed from."""

    epoch: int = 1
    """The epoch in progress, from 1; one past the last when the run is through."""
    epoch_step: int = 0
    """Steps done in it."""
    step: int = 0
    """Steps done in the run."""
    loss_sum: float = 0.0
    """Sum of the losses of the epoch's clips so far."""
    num_clips: int = 0
    """Those clips."""
    train_s: float = 0.0
    """Seconds trained in the epoch so far."""
    steps: list[CurvePoint] = field(default_factory=list)
    epochs: list[EpochResult] = field(default_factory=list)
    bad_steps: list[SkippedStep] = field(default_factory=list)
    num_bad_in_a_row: int = 0
    """The last ones of them, if no good step followed."""
    has_gone_back: bool = False
    """Whether the run has diverged and gone back to a checkpoint before."""

    def copy(self) -> "Progress":
        """A snapshot; the entries of its lists never change."""
        return replace(
            self, steps=[*self.steps], epochs=[*self.epochs], bad_steps=[*self.bad_steps]
        )
