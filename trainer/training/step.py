"""One step of the optimiser, from a batch on the device to new weights; the host never waits.

In: this rank's slice of a batch. Steps: loss and gradients, in micro-batches where memory is short;
their sums over the ranks; the optimiser's step, unless the loss or the gradient is not finite or
too large. Out: the weights, and four figures that stay on the device.

B clips of this rank, T frames, F mels, C classes.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from trainer.data.batch import Batch
from trainer.model.ast import AST
from trainer.model.precision import autocast
from trainer.optim.loss import loss_per_clip
from trainer.optim.optimiser import make_optimiser
from trainer.optim.settings import OptimiserSettings
from trainer.optim.skip import step_unless
from trainer.recipe.settings import TrainSettings
from trainer.training.divergence import gradient_norm, is_bad
from trainer.training.fsdp import apply_fsdp
from trainer.training.world import World


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Learner:
    """A model with what trains it."""

    ast: AST
    wrapped: nn.Module
    """The model as training calls it: wrapped to average gradients over the ranks."""
    optimiser: torch.optim.Optimizer
    scaler: GradScaler
    """Scales the loss in float16; does nothing in other precisions."""
    settings: TrainSettings
    world: World


def make_learner(
    ast: AST, optimiser: OptimiserSettings, settings: TrainSettings, world: World
) -> Learner:
    """The model on this rank's device, with its optimiser."""
    use_fsdp = settings.sharding == "shard" and world.size > 1
    wrapped = apply_fsdp(ast, world) if use_fsdp else world.replicate(ast)
    return Learner(
        ast=ast,
        wrapped=wrapped,
        optimiser=make_optimiser(ast.parameters(), optimiser),
        scaler=GradScaler(world.device.type, enabled=settings.precision == "float16"),
        settings=settings,
        world=world,
    )


def make_step(learner: Learner, batch: Batch, lr: float, *, leaves: bool = False) -> Tensor:
    """Make an optimiser step on a batch with the model's input (stage 3), unless it is a bad one.

    Returns `[4]` on the device, the same on every rank: the sum of the global batch's losses, the
    gradient's norm, 1 if the step was skipped, and how many ranks are to leave (`leaves`).
    """
    optimiser, scaler, world = learner.optimiser, learner.scaler, learner.world
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)
    if leaves:
        sums[1].fill_(1.0)
    optimiser.zero_grad(set_to_none=True)
    num_clips = len(batch.x)
    size = learner.settings.micro_batch_size or num_clips
    for start in range(0, num_clips, size):
        with _averaging_gradients(learner.wrapped, start + size >= num_clips):
            loss = _loss(learner, batch, slice(start, start + size))
            # The ranks' gradients are averaged, so each rank scales its loss by the world size.
            scaled = scaler.scale(loss * (world.size / batch.num_clips))
            scaled.backward()  # type: ignore[no-untyped-call]
        sums[0] += loss.detach()
    scaler.unscale_(optimiser)
    total, num_leaving = world.sum(sums)
    norm = gradient_norm(learner.ast).double()
    bad = is_bad(total, norm, learner.settings.max_gradient_norm)
    for group in optimiser.param_groups:
        group["lr"] = lr
    # All ranks have the same gradients and so the same answer.
    step_unless(optimiser, bad)
    scaler.update()
    return torch.stack([total, norm, bad.double(), num_leaving])


def _loss(learner: Learner, batch: Batch, part: slice) -> Tensor:
    """The sum of the losses of a micro-batch."""
    settings, x = learner.settings, batch.x[part]
    with autocast(x.device, settings.precision):
        logits = learner.wrapped(x)
    losses = loss_per_clip(logits, batch.targets[part], settings.loss)
    return (losses * batch.clip_weights[part]).sum()


def _averaging_gradients(wrapped: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Average gradients over the ranks once a step, with the last micro-batch.

    FSDP averages them with each one: a rank has no room for whole gradients.
    """
    if is_last or not isinstance(wrapped, DistributedDataParallel):
        return nullcontext()
    return wrapped.no_sync()
