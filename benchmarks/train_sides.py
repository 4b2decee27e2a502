"""Ways of making one training step: ours with its variants, transformers', and the AST authors'.

In: the model's size and a batch that is already on the device. Out: a function that makes a step,
and the FLOPs per clip. All sides use timm's or transformers' blocks of the same size, with random
weights.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import MethodType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import ASTConfig, ASTForAudioClassification

from trainer.data.batch import Batch
from trainer.model.ast import AST
from trainer.model.build import build_model
from trainer.model.flops import training_flops
from trainer.model.last_block import all_outputs
from trainer.model.precision import autocast
from trainer.model.settings import ModelSettings, Precision
from trainer.optim.loss import loss_per_clip
from trainer.optim.settings import OptimiserSettings
from trainer.recipe.settings import TrainSettings
from trainer.training import step as training_step
from trainer.training.step import Learner, make_learner, make_step
from trainer.training.world import World

NUM_MELS = 128
NUM_CLASSES = 527
LR = 1e-5
PUBLISHED = OptimiserSettings()

Step = Callable[[], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What every side computes."""

    settings: ModelSettings
    batch: Batch
    precision: Precision


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One way of training."""

    step: Step
    flops: int
    """FLOPs of a clip's forward and backward pass."""


def random_batch(batch_size: int, num_frames: int, device: torch.device) -> Batch:
    """A batch of noise for a step, each clip with few labels, like AudioSet's."""
    return Batch(
        x=torch.randn(batch_size, num_frames, NUM_MELS, device=device),
        lengths=torch.full((batch_size,), num_frames, device=device),
        num_frames=num_frames,
        audio_fbank=None,
        targets=(torch.rand(batch_size, NUM_CLASSES, device=device) < 0.01).float(),
        clip_weights=torch.ones(batch_size, device=device),
        num_clips=batch_size,
        indices=np.arange(batch_size),
    )


def ours(task: Task) -> Side:
    """The loop's own step, each block compiled."""
    return _side(task, _learner(task, compile=True))


def not_compiled(task: Task) -> Side:
    return _side(task, _learner(task))


def whole_model(task: Task) -> Side:
    """The whole model compiled as one graph, not each block separately."""
    learner = _learner(task)
    learner.ast.compile(dynamic=False)
    return _side(task, learner)


def graphs(task: Task) -> Side:
    """Forward and backward pass recorded once and replayed, so that the host launches nothing."""
    learner = _learner(task, compile=True)
    if task.batch.x.is_cuda:
        # The graphs update the 16-bit copies of the weights: autocast must not cache them.
        device_type, dtype = task.batch.x.device.type, getattr(torch, task.precision)
        with torch.autocast(device_type, dtype, cache_enabled=False):
            _loss(learner, task).backward()  # type: ignore[no-untyped-call]
            learner.optimiser.zero_grad(set_to_none=True)
            torch.cuda.make_graphed_callables(learner.ast, (task.batch.x,))
    return _side(task, learner)


def patchout(task: Task) -> Side:
    """As PaSST-S on AudioSet: 4 of 12 rows, 40 of 101 columns dropped, or as large a share."""
    rows, columns = task.settings.grid(NUM_MELS)
    changes = {"patchout_frequency": rows // 3, "patchout_time": round(columns * 40 / 101)}
    return _side(task, _learner(task, compile=True, **changes))


def checkpointed(task: Task) -> Side:
    """Activations recomputed in the backward pass."""
    return _side(task, _learner(task, compile=True, checkpoint_activations=True))


def float8(task: Task) -> Side:
    """The blocks' linear layers in 8 bits, scaled by rows, by torchao; emulated on a CPU."""
    # Optional: the other sides run without torchao.
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    learner = _learner(task, compile=True)
    config = replace(
        Float8LinearConfig.from_recipe_name("rowwise"),
        emulate=not task.batch.x.is_cuda,
        pad_inner_dim=True,
    )
    convert_to_float8_training(learner.ast.blocks, config=config)
    return _side(task, learner)


def compiled_loss(task: Task) -> Side:
    """The loss and its gradient as one kernel each."""
    side, compiled = ours(task), torch.compile(loss_per_clip, dynamic=False)

    def step() -> None:
        with patch.object(training_step, "loss_per_clip", compiled):
            side.step()

    return replace(side, step=step)


def unfolded_patches(task: Task) -> Side:
    """The patch projection as a product of matrices in place of a convolution."""
    learner = _learner(task, compile=True)
    # This becomes a setting of the model only if it proves worthwhile.
    learner.ast.patch_embed = UnfoldedPatches(learner.ast.patch_embed)  # type: ignore[assignment]
    return _side(task, learner)


def transformers(task: Task) -> Side:
    """With all that makes it fast: SDPA, autocast, `torch.compile`, a fused optimiser."""
    model_of_ours, batch = _model(task), task.batch
    block: Any = model_of_ours.blocks[0]
    config = ASTConfig(
        hidden_size=model_of_ours.head.in_features,
        num_hidden_layers=len(model_of_ours.blocks),
        num_attention_heads=block.attn.num_heads,
        intermediate_size=block.mlp.fc1.out_features,
        frequency_stride=task.settings.stride_frequency,
        time_stride=task.settings.stride_time,
        max_length=task.settings.num_frames,
        num_mel_bins=NUM_MELS,
        num_labels=NUM_CLASSES,
        attn_implementation="sdpa",
    )
    model = ASTForAudioClassification(config).to(batch.x.device).train()
    optimiser = torch.optim.Adam(model.parameters(), LR, betas=(0.95, 0.999), fused=True)
    flops = _counted_flops(model, task)
    model.compile(dynamic=False)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with autocast(batch.x.device, task.precision):
            logits = model(batch.x).logits
        _bce(logits.float(), batch.targets).backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return Side(step=step, flops=flops)


def authors(task: Task) -> Side:
    """As in their training script: float16, softmax(q k^T) v, Adam's default kernels.

    The loss is read at every step. The task's precision is ignored.
    """
    batch, device = task.batch, task.batch.x.device
    model = _model(task).to(device).train()
    block: Any
    for block in model.blocks:
        block.attn.fused_attn = False
    # Theirs computes all outputs of the last block, too.
    block.forward = MethodType(all_outputs, block)
    optimiser = torch.optim.Adam(model.parameters(), LR, weight_decay=5e-7, betas=(0.95, 0.999))
    scaler = GradScaler(device.type)

    def step() -> None:
        with torch.autocast(device.type, torch.float16):
            loss = _bce(model(batch.x), batch.targets)
        optimiser.zero_grad()
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimiser)
        scaler.update()
        loss.item()

    return Side(step=step, flops=_counted_flops(model, task))


SIDES: dict[str, Callable[[Task], Side]] = {
    "ours": ours,
    "transformers": transformers,
    "authors": authors,
    "ours, whole model": whole_model,
    "ours, CUDA graphs": graphs,
    "ours, not compiled": not_compiled,
    "ours, patchout": patchout,
    "ours, checkpointed": checkpointed,
    "ours, FP8": float8,
    "ours, compiled loss": compiled_loss,
    "ours, unfolded patches": unfolded_patches,
}


class UnfoldedPatches(nn.Module):
    """A patch projection `[B, 1, F, T]` to `[B, D, f, t]` that copies the patches side by side."""

    def __init__(self, projection: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = projection.weight, projection.bias
        self.stride = projection.stride

    def forward(self, x: Tensor) -> Tensor:
        width, _, height, length = self.weight.shape
        patches = x.unfold(2, height, self.stride[0]).unfold(3, length, self.stride[1])
        rows, columns = patches.shape[2:4]
        flat = patches.reshape(len(x), rows * columns, height * length)
        projected = functional.linear(flat, self.weight.reshape(width, -1), self.bias)
        return projected.transpose(1, 2).reshape(len(x), width, rows, columns)


def _learner(task: Task, **changes: Any) -> Learner:
    world = World(device=task.batch.x.device)
    model = _model(task, **changes).train()
    return make_learner(model, PUBLISHED, TrainSettings(precision=task.precision), world)


def _side(task: Task, learner: Learner) -> Side:
    return Side(step=partial(make_step, learner, task.batch, LR), flops=training_flops(learner.ast))


def _counted_flops(model: nn.Module, task: Task) -> int:
    """FLOPs of a clip's forward and backward pass of a model that is not quite ours."""
    x = torch.empty(1, *task.batch.x.shape[1:], device="meta")
    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(model).to("meta")(x)
    return 3 * int(counter.get_total_flops())


def _model(task: Task, **changes: Any) -> AST:
    settings = replace(task.settings, **changes)
    return build_model(settings, num_classes=NUM_CLASSES, num_mels=NUM_MELS)


def _loss(learner: Learner, task: Task) -> Tensor:
    return loss_per_clip(learner.ast(task.batch.x), task.batch.targets, "bce").mean()


def _bce(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, targets)
