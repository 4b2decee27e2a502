"""The learning rate as a pure function of the step and the epoch.

In: the settings, the number of optimiser steps taken, and the epoch. Out: the learning rate of the
next step. There is no scheduler with state to save, and a resumed run follows the same curve as
one that was never interrupted.
"""

from dataclasses import replace

from trainer.optim.settings import ScheduleSettings


def learning_rate(settings: ScheduleSettings, *, step: int, epoch: int) -> float:
    """Learning rate of optimiser step `step`, in `epoch` (counted from 1).

    `step` counts from 0 over the whole run. The rate is `lr` times two factors:

    - warm-up: `step / warmup_steps`, with `step` rounded down to a multiple of
      `warmup_every_steps`, and 1 from step `warmup_steps` on. The first `warmup_every_steps`
      steps therefore run at a rate of 0, as in the training loop that the AST authors released;
      Adam's moments already build up in them.
    - decay: `decay_factor` for each epoch of `decay_after_epochs` that is finished.

    In the authors' loop the warm-up sets an absolute rate, which would undo any decay during the
    warm-up. Theirs ends within epoch 1, where both rules agree. On data so small that the warm-up
    outlasts the first decay, this keeps the product.

    Raises ValueError for a negative step or an epoch below 1.
    """
    if step < 0:
        raise ValueError(f"step: must be at least 0, got {step}")
    if epoch < 1:
        raise ValueError(f"epoch: must be at least 1, got {epoch}")
    num_decays = sum(finished < epoch for finished in settings.decay_after_epochs)
    return settings.lr * _warmup_factor(settings, step) * settings.decay_factor**num_decays


def until(settings: ScheduleSettings, epoch: int) -> ScheduleSettings:
    """The schedule as far as it decides the rates of the epochs from 1 to `epoch`."""
    decays = tuple(finished for finished in settings.decay_after_epochs if finished < epoch)
    return replace(settings, decay_after_epochs=decays)


def _warmup_factor(settings: ScheduleSettings, step: int) -> float:
    if step >= settings.warmup_steps:
        return 1.0
    return (step - step % settings.warmup_every_steps) / settings.warmup_steps
