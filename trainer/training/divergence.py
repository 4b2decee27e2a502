"""Bad steps, which are skipped: a loss or a gradient that is not finite, or explodes.

In: the loss and the gradient's norm of a step, the same on every rank. The fused optimiser skips a
bad step on the device (see `trainer.optim.skip`), so that no step waits for the host, which learns
of it at the next point of the curve. Out: an error after too many in a row.
"""

import torch
from torch import Tensor, nn

from trainer.checkpoints.progress import SkippedStep
from trainer.run.skipped_steps import DivergedError
from trainer.training.fsdp import gathered

_LOWER = "lower schedule.lr or lengthen schedule.warmup_steps"
_ANEW = "and remove the run or give another --out"


def gradient_norm(model: nn.Module) -> Tensor:
    """The norm of all gradients together, on their device."""
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return gathered(torch.nn.utils.get_total_norm(gradients))


def is_bad(loss: Tensor, norm: Tensor, max_norm: float) -> Tensor:
    """Whether to skip a step, a bool on the device; `max_norm` 0: no limit."""
    bad = ~(torch.isfinite(loss) & torch.isfinite(norm))
    return bad | (norm > max_norm) if max_norm else bad


def diverged(run_path: str, last: SkippedStep, num_in_a_row: int) -> DivergedError:
    """The error for a run that skipped too many steps in a row."""
    change = _LOWER
    # Numbers that are not finite are strings there.
    if not any(isinstance(value, str) for value in (last.loss, last.grad_norm)):
        change = f"raise train.max_gradient_norm, or {change}"
    return DivergedError(
        run_path,
        f"the loss is {last.loss}, the gradient's norm {last.grad_norm} near "
        f"step {last.step} (epoch {last.epoch}), {num_in_a_row} skipped in a row",
        f"{change}, {_ANEW}",
    )


def not_finite(run_path: str, clips_name: str) -> DivergedError:
    """The error for a model with outputs that are not finite."""
    return DivergedError(
        run_path,
        f"the model's outputs on {clips_name!r} are not finite numbers: the training has diverged",
        f"{_LOWER}, {_ANEW}",
    )
