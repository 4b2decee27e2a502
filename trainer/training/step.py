"""One step of the optimiser: a batch on the device to changed weights, and nothing waits for it.

In: this rank's batch with the model's input. Steps: loss and gradients, in parts where memory
is short; their sums over the ranks; the optimiser's step, unless the loss or the gradient is no
finite number or too large a one. Out: the weights, and three figures that stay on the device.

B rows of this rank, T frames, F mels, C classes.
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
from trainer.training.fsdp import shard
from trainer.training.world import World


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Learner:
    """A model and what changes its weights."""

    ast: AST
    shared: nn.Module
    """The model as training calls it: it averages gradients over the ranks."""
    optimiser: torch.optim.Optimizer
    scaler: GradScaler
    """Of the loss in float16; else it does nothing."""
    settings: TrainSettings
    world: World


def make_learner(
    ast: AST, optimiser: OptimiserSettings, settings: TrainSettings, world: World
) -> Learner:
    """All that a step takes, on this rank's device."""
    is_sharded = settings.sharding == "shard" and world.size > 1
    shared = shard(ast, world) if is_sharded else world.share(ast)
    return Learner(
        ast=ast,
        shared=shared,
        optimiser=make_optimiser(ast.parameters(), optimiser),
        scaler=GradScaler(world.device.type, enabled=settings.precision == "float16"),
        settings=settings,
        world=world,
    )


def make_step(learner: Learner, batch: Batch, lr: float) -> Tensor:
    """One optimiser step on a batch with the model's input (stage 3), unless it is a bad one.

    Returns `[3]` on the device, the same on every rank: the sum of the global batch's losses, the
    gradient's norm, and 1 if the step was skipped.
    """
    optimiser, scaler, world = learner.optimiser, learner.scaler, learner.world
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    optimiser.zero_grad(set_to_none=True)
    num_rows = len(batch.x)
    size = learner.settings.micro_batch_size or num_rows
    for start in range(0, num_rows, size):
        with _sharing_gradients(learner.shared, start + size >= num_rows):
            loss = _loss(learner, batch, slice(start, start + size))
            # Gradients are averaged over the ranks, so each rank scales its loss by their number.
            scaled = scaler.scale(loss * (world.size / batch.num_clips))
            scaled.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    scaler.unscale_(optimiser)
    total, norm = world.sum(total), gradient_norm(learner.ast).double()
    bad = is_bad(total, norm, learner.settings.max_gradient_norm)
    for group in optimiser.param_groups:
        group["lr"] = lr
    # All ranks have the same gradients and so the same answer.
    step_unless(optimiser, bad)
    scaler.update()
    return torch.stack([total, norm, bad.double()])


def _loss(learner: Learner, batch: Batch, part: slice) -> Tensor:
    """The sum of the losses of some rows."""
    settings, x = learner.settings, batch.x[part]
    with autocast(x.device, settings.precision):
        logits = learner.shared(x)
    losses = loss_per_clip(logits, batch.targets[part], settings.loss)
    return (losses * batch.clip_weights[part]).sum()


def _sharing_gradients(shared: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Gradients are averaged over the ranks once a step, with its last backward pass.

    Not so those of a model that is shared out: a rank has no room for whole gradients.
    """
    if is_last or not isinstance(shared, DistributedDataParallel):
        return nullcontext()
    return shared.no_sync()
