"""The learning rate as a pure function of the step and the epoch.

In: the settings, how many optimiser steps were taken and which epoch this is. Out: the learning
rate of the next step. There is no scheduler object with a state of its own, so nothing of it has
to be saved, and a resumed run follows the same curve as one that was never interrupted.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleSettings:
    """Stepwise warm-up, then a decay after given epochs; defaults are those of full AudioSet."""

    lr: float = 1e-5
    """Learning rate after the warm-up and before the first decay."""
    warmup_steps: int = 1000
    """Optimiser steps until the warm-up reaches `lr`; 0 for none."""
    warmup_every_steps: int = 50
    """The warm-up raises the rate every so many steps; 1 gives a linear ramp."""
    decay_after_epochs: tuple[int, ...] = (2, 3, 4)
    """The rate decays at the end of each of these epochs, counted from 1; empty for never."""
    decay_factor: float = 0.5
    """Each decay multiplies the rate by this."""

    def __post_init__(self) -> None:
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr: must be a number above 0, got {self.lr}")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps: must be at least 0, got {self.warmup_steps}")
        if self.warmup_every_steps < 1:
            raise ValueError(
                f"warmup_every_steps: must be at least 1, got {self.warmup_every_steps}"
            )
        if 0 < self.warmup_steps < self.warmup_every_steps:
            raise ValueError(
                f"warmup_every_steps: must be at most warmup_steps ({self.warmup_steps}), "
                f"or the whole warm-up runs at 0, got {self.warmup_every_steps}"
            )
        epochs = self.decay_after_epochs
        if any(epoch < 1 for epoch in epochs) or list(epochs) != sorted(set(epochs)):
            raise ValueError(
                f"decay_after_epochs: must be rising epoch numbers from 1, got {list(epochs)}"
            )
        if not 0 < self.decay_factor <= 1:
            raise ValueError(
                f"decay_factor: must be above 0 and at most 1, got {self.decay_factor}"
            )


def learning_rate(settings: ScheduleSettings, *, step: int, epoch: int) -> float:
    """Learning rate of the optimiser step after `step` others, in `epoch` (counted from 1).

    `step` counts from 0 over the whole run. The rate is `lr` times two factors:

    - warm-up: `step / warmup_steps`, with `step` rounded down to a multiple of
      `warmup_every_steps`, and 1 from step `warmup_steps` on. The first `warmup_every_steps`
      steps therefore run at a rate of 0, as in the training loop that the AST authors released;
      Adam's moments already build up in them.
    - decay: `decay_factor` for each epoch of `decay_after_epochs` that is finished.

    In the authors' loop the warm-up sets an absolute rate and so undoes, for good, every decay
    that fell into it. Theirs never did, for their warm-up lies within epoch 1, and there both
    rules agree. On data so small that a warm-up outlasts the first decay the product is kept.

    Raises ValueError for a negative step or an epoch below 1.
    """
    if step < 0:
        raise ValueError(f"step: must be at least 0, got {step}")
    if epoch < 1:
        raise ValueError(f"epoch: must be at least 1, got {epoch}")
    num_decays = sum(finished < epoch for finished in settings.decay_after_epochs)
    return settings.lr * _warmup_factor(settings, step) * settings.decay_factor**num_decays


def _warmup_factor(settings: ScheduleSettings, step: int) -> float:
    if step >= settings.warmup_steps:
        return 1.0
    return (step - step % settings.warmup_every_steps) / settings.warmup_steps
