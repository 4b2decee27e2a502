"""Settings of the training loop, and published scores to compare with."""

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from pipeline.errors import MAX_COUNT, SettingValueError, check_at_most, check_one_of
from trainer.data.settings import MAX_SEED
from trainer.model.settings import Precision
from trainer.optim.settings import Loss, ScoreFunction

Sharding = Literal["replicate", "shard"]


Scores = Literal["", "sigmoid", "softmax"]


Selection = Literal["", "accuracy", "mAP"]


Tracker = Literal["", "mlflow", "wandb"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """Loss, length, batches, precision, FSDP, divergence, logging and checkpoints of a run."""

    loss: Loss = "bce"
    """`bce` for multi-label data, `ce` for one label a clip."""
    scores: Scores = ""
    """`sigmoid` or `softmax` outputs as scores; empty: sigmoid with `bce`, softmax with `ce`. The
    authors take sigmoid with either: set it where you compare mAP or ensembles of models trained
    with `ce` with theirs. The accuracy of a single model is the same."""
    epochs: int = 5
    """Number of epochs. A finished run that is given more goes on from its end, as if it had had
    them from the start; `schedule.decay_after_epochs` may change for the epochs to come."""
    batch_size: int = 12
    """Clips in a global batch, split among the workers."""
    seed: int = 0
    """Decides the initial weights, the order of the clips and every augmentation."""
    precision: Precision = "float32"
    """`bfloat16` or `float16`: autocast, in evaluation too, as in the authors' code; weights,
    optimiser and the head stay float32. `float16` scales the loss and skips the first steps until
    the scale fits. CPUs without 16-bit instructions are many times slower in either."""
    micro_batch_size: int = 0
    """Clips that a worker computes at once, in evaluation too, to save memory; 0: its whole slice
    of the batch. The batch, the schedule and the losses stay the same."""
    sharding: Sharding = "replicate"
    """`replicate`: every worker holds the whole model. `shard` (FSDP): each holds a part of the
    weights, gradients and optimiser state, for models that need too much memory. A resumed run may
    change it."""
    max_gradient_norm: float = 0.0
    """Skip steps with a larger gradient norm, as those with one that is not finite; 0: no limit.
    Gradients are never clipped."""
    max_bad_steps: int = 10
    """This many skipped steps in a row are a divergence. The first time, the run goes back to its
    last checkpoint; without a checkpoint, or the second time, it stops."""
    lr_after_divergence: float = 1.0
    """Factor on the learning rate once the run has gone back."""
    select_by: Selection = ""
    """Also keep the weights of the epoch with the highest `accuracy` or `mAP` on the evaluation
    clips (the first, if tied), and score them at the end; empty: no epoch is selected."""
    log_every_steps: int = 20
    """Steps between two points of the loss curve."""
    checkpoint_every_s: float = 300.0
    """Longest time between checkpoints within an epoch, in seconds; each epoch ends with one."""
    tracker: Tracker = ""
    """`mlflow` or `wandb`: also send settings and curves there, with each checkpoint; empty: to
    TensorBoard's files alone. A resumed run may change it."""

    def __post_init__(self) -> None:
        for name, kind in (
            ("loss", Loss),
            ("scores", Scores),
            ("precision", Precision),
            ("sharding", Sharding),
            ("select_by", Selection),
            ("tracker", Tracker),
        ):
            check_one_of(self, get_args(kind), name)
        for name in ("epochs", "batch_size", "log_every_steps", "max_bad_steps"):
            if getattr(self, name) < 1:
                raise SettingValueError(name, f"must be at least 1, got {getattr(self, name)}")
        counts = ("epochs", "batch_size", "micro_batch_size", "max_bad_steps", "log_every_steps")
        check_at_most(self, MAX_COUNT, *counts)
        check_at_most(self, 1e9, "checkpoint_every_s")
        if not 0 <= self.seed <= MAX_SEED:
            raise SettingValueError("seed", f"must be from 0 to {MAX_SEED}, got {self.seed}")
        for name in ("checkpoint_every_s", "max_gradient_norm", "micro_batch_size"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingValueError(
                    name, f"must be a number of at least 0, got {getattr(self, name)}"
                )
        if not 0 < self.lr_after_divergence <= 1:
            raise SettingValueError(
                "lr_after_divergence",
                f"must be above 0 and at most 1, got {self.lr_after_divergence}",
            )

    @property
    def score_function(self) -> ScoreFunction:
        """What makes scores of logits."""
        return self.scores or ("sigmoid" if self.loss == "bce" else "softmax")


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedSettings:
    """Published scores for these settings, which `report` draws beside the run's."""

    mAP: tuple[float, ...] = ()  # noqa: N815
    """mAP on the evaluation clips after each epoch; empty: none published."""
    mAUC: tuple[float, ...] = ()  # noqa: N815
    """mAUC, likewise."""
    accuracy: tuple[float, ...] = ()
    """Accuracy from 0 to 1, likewise."""

    def __post_init__(self) -> None:
        for metric in fields(self):
            values = getattr(self, metric.name)
            if not all(0 <= value <= 1 for value in values):
                raise SettingValueError(
                    metric.name, f"must be numbers from 0 to 1, got {list(values)}"
                )
