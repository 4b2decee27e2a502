"""Training steps on one device: ours, transformers', and the AST authors' as published, in one run.

In: a batch of noise that is on the device already. Steps: every side makes steps until it is warm,
compilers too; then the sides take turns. Out: a table of medians, beside what a matrix product
reaches on the device in the same run, and the ratios that are aimed at.

    .venv/bin/python benchmarks/train_throughput.py

On a GPU that is the base model at stride 10 on 10 s clips; on a CPU a small one, to try the code.
All sides are timm's or transformers' blocks of the same size, with random weights.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional
from transformers import ASTConfig, ASTForAudioClassification

from trainer.first_weights import build_model
from trainer.flops import training_flops
from trainer.model import AST, ModelSettings
from trainer.optimiser import OptimiserSettings
from trainer.precision import Precision
from trainer.recipe import TrainSettings
from trainer.step import Share, make_learner, make_step
from trainer.world import World

NUM_MELS = 128
NUM_CLASSES = 527
LR = 1e-5
PUBLISHED = OptimiserSettings()

Step = Callable[[], object]


@dataclass(kw_only=True)
class Side:
    """One way of training."""

    step: Step
    flops: int
    """Of a clip's forward and backward pass."""
    resident_bytes: int
    """Weights, gradients and optimiser on the GPU."""
    peak_bytes: int = 0
    """The most during a step."""
    step_s: list[float] = field(default_factory=list)


def main() -> None:
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if has_gpu else "cpu")
    size = "base" if has_gpu else "tiny"
    parser.add_argument("--backbone", default=f"deit_{size}_distilled_patch16_224")
    parser.add_argument("--depth", type=int, default=0 if has_gpu else 2, help="blocks; 0: all")
    parser.add_argument("--num-frames", type=int, default=1024 if has_gpu else 128)
    parser.add_argument("--batch-size", type=int, default=32 if has_gpu else 2)
    parser.add_argument(
        "--precision", default="bfloat16" if has_gpu else "float32", help="not the authors'"
    )
    parser.add_argument(
        "--rounds", type=int, default=10 if has_gpu else 5, help="turns of each side"
    )
    parser.add_argument("--steps", type=int, default=10 if has_gpu else 1, help="in a turn")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    settings = ModelSettings(
        backbone=arguments.backbone,
        pretrained=False,
        depth=arguments.depth,
        num_frames=arguments.num_frames,
    )
    torch.manual_seed(0)
    batch = Share(
        x=torch.randn(arguments.batch_size, arguments.num_frames, NUM_MELS, device=device),
        targets=(torch.rand(arguments.batch_size, NUM_CLASSES, device=device) < 0.01).float(),
        weights=torch.ones(arguments.batch_size, device=device),
        num_clips=arguments.batch_size,
    )
    sides = {
        name: warmed_up(partial(SIDES[name], settings, batch, arguments.precision), device)
        for name in arguments.sides
    }
    matmul_s = []
    for _ in range(arguments.rounds):
        for side in sides.values():
            take_turn(side, arguments.steps, device)
        matmul_s.append(seconds_per_flop(arguments.precision, device))
    peak = 1 / min(matmul_s)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(
        f"{name}, {os.cpu_count()} CPUs, torch {torch.__version__}; {settings.backbone}, "
        f"{settings.num_patches(NUM_MELS)} patches, {arguments.batch_size} clips a step; "
        f"a product of matrices in {arguments.precision}: {peak / 1e12:.3g} TFLOP/s"
    )
    show(sides, arguments.batch_size, peak)


def compiled(settings: ModelSettings, batch: Share, precision: Precision) -> tuple[Step, int]:
    return ours(settings, batch, precision, compile=True)


def eager(settings: ModelSettings, batch: Share, precision: Precision) -> tuple[Step, int]:
    return ours(settings, batch, precision)


def patchout(settings: ModelSettings, batch: Share, precision: Precision) -> tuple[Step, int]:
    """As PaSST-S on AudioSet, without 4 of 12 bands and 40 of 101 times, or as large a share."""
    rows, columns = settings.grid(NUM_MELS)
    return ours(
        settings,
        batch,
        precision,
        compile=True,
        patchout_frequency=rows // 3,
        patchout_time=round(columns * 40 / 101),
    )


def checkpointed(settings: ModelSettings, batch: Share, precision: Precision) -> tuple[Step, int]:
    return ours(settings, batch, precision, compile=True, checkpoint_activations=True)


def ours(
    settings: ModelSettings, batch: Share, precision: Precision, **changes: object
) -> tuple[Step, int]:
    """The loop's own step."""
    model = random_model(settings, **changes)
    world = World(device=batch.x.device)
    learner = make_learner(model, PUBLISHED, TrainSettings(precision=precision), world)
    return partial(make_step, learner, batch, LR), training_flops(model.train())


def transformers(settings: ModelSettings, batch: Share, precision: Precision) -> tuple[Step, int]:
    """As fast as its users get it: SDPA, autocast, `torch.compile`, a fused optimiser."""
    same = random_model(settings)
    block = same.blocks[0]
    config = ASTConfig(
        hidden_size=same.head.in_features,
        num_hidden_layers=len(same.blocks),
        num_attention_heads=block.attn.num_heads,
        intermediate_size=block.mlp.fc1.out_features,
        frequency_stride=settings.stride_frequency,
        time_stride=settings.stride_time,
        max_length=settings.num_frames,
        num_mel_bins=NUM_MELS,
        num_labels=NUM_CLASSES,
        attn_implementation="sdpa",
    )
    model = ASTForAudioClassification(config).to(batch.x.device).train()
    optimiser = torch.optim.Adam(model.parameters(), LR, betas=(0.95, 0.999), fused=True)
    model.compile()

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        dtype = getattr(torch, precision)
        with torch.autocast(batch.x.device.type, dtype, enabled=dtype != torch.float32):
            logits = model(batch.x).logits
        bce(logits.float(), batch.targets).backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step, training_flops(same.train())


def authors(settings: ModelSettings, batch: Share, precision: Precision) -> tuple[Step, int]:
    """As their training script does it: float16, softmax(q k^T) v, Adam's default kernels.

    The loss is read at every step. `precision` is not theirs.
    """
    device = batch.x.device
    model = random_model(settings).to(device).train()
    for block in model.blocks:
        block.attn.fused_attn = False
    optimiser = torch.optim.Adam(model.parameters(), LR, weight_decay=5e-7, betas=(0.95, 0.999))
    scaler = GradScaler(device.type)

    def step() -> None:
        with torch.autocast(device.type, torch.float16):
            loss = bce(model(batch.x), batch.targets)
        optimiser.zero_grad()
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimiser)
        scaler.update()
        loss.item()

    return step, training_flops(model)


SIDES: dict[str, Callable[[ModelSettings, Share, Precision], tuple[Step, int]]] = {
    "ours": compiled,
    "ours, not compiled": eager,
    "ours, patchout": patchout,
    "ours, checkpointed": checkpointed,
    "transformers": transformers,
    "authors": authors,
}


def random_model(settings: ModelSettings, **changes: Any) -> AST:
    return build_model(replace(settings, **changes), num_classes=NUM_CLASSES, num_mels=NUM_MELS)


def bce(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, targets)


def warmed_up(make: Callable[[], tuple[Step, int]], device: torch.device) -> Side:
    """A side after some steps, which compile it and make its optimiser's state."""
    before = allocated_bytes(device)
    step, flops = make()
    for _ in range(3):
        step()
    synchronise(device)
    return Side(step=step, flops=flops, resident_bytes=allocated_bytes(device) - before)


def take_turn(side: Side, num_steps: int, device: torch.device) -> None:
    """Time some steps, and note the memory they took."""
    before = allocated_bytes(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    synchronise(device)
    start_s = time.perf_counter()
    for _ in range(num_steps):
        side.step()
    synchronise(device)
    side.step_s.append((time.perf_counter() - start_s) / num_steps)
    if device.type == "cuda":
        peak_bytes = torch.cuda.max_memory_allocated(device) - before + side.resident_bytes
        side.peak_bytes = max(side.peak_bytes, peak_bytes)


def seconds_per_flop(precision: str, device: torch.device) -> float:
    """Of a product of large matrices: what the device really does at most."""
    size, repeats = (8192, 20) if device.type == "cuda" else (1024, 2)
    a = torch.randn(size, size, device=device, dtype=getattr(torch, precision))
    a @ a
    synchronise(device)
    start_s = time.perf_counter()
    for _ in range(repeats):
        a @ a
    synchronise(device)
    return (time.perf_counter() - start_s) / (repeats * 2 * size**3)


def allocated_bytes(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def show(sides: dict[str, Side], batch_size: int, peak: float) -> None:
    """The table, and the ratios beside their aims."""
    step_s = {name: float(np.median(side.step_s)) for name, side in sides.items()}
    print(
        f"{'':20}{'clips/s':>9}{'ms/step':>9}{'GFLOP/clip':>12}{'TFLOP/s':>9}{'share':>7}{'GB':>7}"
    )
    for name, side in sides.items():
        flops = side.flops * batch_size / step_s[name]
        gb = f"{side.peak_bytes / 1e9:7.1f}" if side.peak_bytes else f"{'-':>7}"
        print(
            f"{name:20}{batch_size / step_s[name]:9.1f}{1000 * step_s[name]:9.1f}"
            f"{side.flops / 1e9:12.1f}{flops / 1e12:9.3g}{flops / peak:7.0%}{gb}"
        )
    for name, aim in (("transformers", 1.5), ("authors", 4.0)):
        if {"ours", name} <= sides.keys():
            print(f"{name} / ours {step_s[name] / step_s['ours']:.2f} (aim on a GPU: {aim:g})")
    print("aim for the share on an H200: 50 % of 790 TFLOP/s")


if __name__ == "__main__":
    main()
