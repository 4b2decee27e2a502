"""Training steps on one device: ours, transformers', and the AST authors' as published, in one run.

In: a batch of noise that is already on the device. Steps: every side makes a few steps to warm up
and compile; then the sides take turns. Out: for each batch size, a table of medians with their
share of the FLOP/s of a matrix product in the same run, the ratios with their aims, and the kernels
that take the most time of our step; and figures (see `figures`).

    .venv/bin/python benchmarks/train_throughput.py

On a GPU this is the base model at stride 10 on 10 s clips; on a CPU a small one, to try the code.
The sides are in `train_sides`. A side that does not fit into memory, or into --seconds, is
reported.
"""

import argparse
import contextlib
import gc
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from device_clock import (
    Recording,
    allocated_bytes,
    ceiling_shape,
    default_device,
    device_name,
    matmul_flops_per_s,
    seconds,
    synchronise,
)
from figures import record
from torch.nn.attention import SDPBackend, sdpa_kernel
from train_sides import NUM_MELS, SIDES, Side, Step, Task, random_batch

from trainer.model.settings import ModelSettings

AIMS = {"transformers": 1.5, "authors": 4.0}
"""Ratio of our clips per second to theirs to reach on a GPU."""
AIM_SHARE = 0.5
"""Share of the matrix product's FLOP/s for our step to reach on a GPU."""
PROFILED_STEPS = 3


@dataclass(kw_only=True)
class Measured:
    """A warmed-up side, and the time and memory of its turns."""

    side: Side
    resident_bytes: int
    """Weights, gradients and optimiser on the GPU."""
    peak_bytes: int = 0
    """Largest during a step."""
    step_s: list[float] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        return statistics.median(self.step_s)


def main() -> None:
    arguments = parse_arguments()
    # Sent at a time limit: exit normally, to print what was measured.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(124))
    device = torch.device(arguments.device)
    deadline_s = time.monotonic() + arguments.seconds
    torch.manual_seed(0)
    settings = ModelSettings(
        backbone=arguments.backbone,
        pretrained=False,
        depth=arguments.depth,
        num_frames=arguments.num_frames,
    )
    dtype = getattr(torch, arguments.precision)
    ceiling = matmul_flops_per_s(device, dtype, ceiling_shape(device), 5)
    print(
        f"{device_name(device)}, {os.cpu_count()} CPUs, torch {torch.__version__}; "
        f"{settings.backbone}, {settings.num_patches(NUM_MELS)} patches; a matrix product in "
        f"{arguments.precision}: {ceiling / 1e12:.3g} TFLOP/s"
    )
    has_failed = False
    for batch_size in arguments.batch_sizes:
        batch = random_batch(batch_size, arguments.num_frames, device)
        task = Task(settings=settings, batch=batch, precision=arguments.precision)
        part = f"train_throughput{arguments.title}, batches of {batch_size}"
        with attention(arguments.attention):
            has_failed |= compare(part, task, ceiling, arguments, deadline_s)
    sys.exit(has_failed)


def parse_arguments() -> argparse.Namespace:
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default=str(default_device()))
    size = "base" if has_gpu else "tiny"
    parser.add_argument("--backbone", default=f"deit_{size}_distilled_patch16_224")
    parser.add_argument("--depth", type=int, default=0 if has_gpu else 2, help="blocks; 0: all")
    parser.add_argument("--num-frames", type=int, default=1024 if has_gpu else 128)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32] if has_gpu else [2])
    parser.add_argument(
        "--precision", default="bfloat16" if has_gpu else "float32", help="not the authors'"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument(
        "--turn-s", type=float, default=0.4 if has_gpu else 0.0, help="seconds of a turn, at least"
    )
    parser.add_argument("--seconds", type=float, default=3600.0, help="start nothing after these")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument(
        "--attention",
        choices=[name.lower() for name in SDPBackend.__members__],
        help="use only this back-end of PyTorch for it",
    )
    parser.add_argument("--title", default="", help="text to add to the name of these figures")
    return parser.parse_args()


def attention(backend: str | None) -> contextlib.AbstractContextManager[None]:
    """A context that restricts attention to a back-end; None: PyTorch chooses."""
    if backend is None:
        return contextlib.nullcontext()
    return sdpa_kernel(SDPBackend.__members__[backend.upper()])


def compare(
    part: str,
    task: Task,
    ceiling: float,
    arguments: argparse.Namespace,
    deadline_s: float,
) -> bool:
    """Measure sides in turns and print them, also when time is up; returns whether one failed."""
    print(f"\n{part}")
    device = task.batch.x.device
    measured: dict[str, Measured] = {}
    try:
        has_failed = take_turns(part, task, measured, arguments, deadline_s)
    finally:
        show(part, measured, task, ceiling)
    if "ours" in measured:
        profile(measured["ours"].side.step, part, device)
    measured.clear()
    free_memory(device)
    return has_failed


def take_turns(
    part: str,
    task: Task,
    measured: dict[str, Measured],
    arguments: argparse.Namespace,
    deadline_s: float,
) -> bool:
    """Warm the sides up, then time them in turns; fills `measured`."""
    device = task.batch.x.device
    has_failed = False
    for name in arguments.sides:
        if time.monotonic() > deadline_s:
            record(part, name, "not measured: no time left")
            continue
        try:
            measured[name] = warmed_up(SIDES[name], task)
            take_turn(measured[name], arguments.turn_s, device)
        except torch.OutOfMemoryError:
            measured.pop(name, None)
            record(part, name, "out of memory")
        except ModuleNotFoundError as error:
            record(part, name, f"not measured: {error}")
        except Exception as error:
            # The other sides are still measured.
            has_failed = True
            measured.pop(name, None)
            lines = str(error).strip().splitlines() or [type(error).__name__]
            record(part, name, f"failed: {type(error).__name__}: {lines[0]}")
        free_memory(device)
    for _ in range(arguments.rounds - 1):
        for timing in measured.values():
            take_turn(timing, arguments.turn_s, device)
    return has_failed


def warmed_up(make: Callable[[Task], Side], task: Task) -> Measured:
    """A side after some steps, which compile it and create its optimiser's state."""
    device = task.batch.x.device
    before, start_s = allocated_bytes(device), time.perf_counter()
    side = make(task)
    for _ in range(3):
        side.step()
    synchronise(device)
    print(f"  ({make.__name__}: warm after {time.perf_counter() - start_s:.1f} s)", flush=True)
    return Measured(side=side, resident_bytes=allocated_bytes(device) - before)


def take_turn(measured: Measured, turn_s: float, device: torch.device) -> None:
    """Time steps for about `turn_s`, at least one, and note their peak memory."""
    before = allocated_bytes(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    first_s = seconds(measured.side.step, device)
    num_steps = max(1, round(turn_s / first_s))

    def steps() -> None:
        for _ in range(num_steps):
            measured.side.step()

    measured.step_s.append(seconds(steps, device) / num_steps)
    if device.type == "cuda":
        peak_bytes = torch.cuda.max_memory_allocated(device) - before + measured.resident_bytes
        measured.peak_bytes = max(measured.peak_bytes, peak_bytes)


def show(part: str, measured: dict[str, Measured], task: Task, ceiling: float) -> None:
    """Print the table; record its figures, and the ratios with their aims."""
    size, on_gpu = len(task.batch.x), task.batch.x.is_cuda
    print(
        f"{'':24}{'clips/s':>9}{'ms/step':>9}{'GFLOP/clip':>12}{'TFLOP/s':>9}{'share':>7}{'GB':>7}"
    )
    for name, timing in measured.items():
        flops_per_s = timing.side.flops * size / timing.median_s
        gb = f"{timing.peak_bytes / 1e9:7.1f}" if timing.peak_bytes else f"{'-':>7}"
        print(
            f"{name:24}{size / timing.median_s:9.1f}{1000 * timing.median_s:9.1f}"
            f"{timing.side.flops / 1e9:12.1f}{flops_per_s / 1e12:9.3g}"
            f"{flops_per_s / ceiling:7.0%}{gb}"
        )
    for name, timing in measured.items():
        share = timing.side.flops * size / timing.median_s / ceiling
        aim = AIM_SHARE if name == "ours" and on_gpu else None
        record(part, name, size / timing.median_s, "clips/s")
        record(part, f"{name}: share of the matrix product's FLOP/s", share, aim=aim)
        record(part, f"{name}: a step", 1000 * timing.median_s, "ms")
        if timing.peak_bytes:
            record(part, f"{name}: peak memory", timing.peak_bytes / 1e9, "GB")
    for name, timing in measured.items():
        if "ours" in measured and name in AIMS:
            ratio = timing.median_s / measured["ours"].median_s
            record(part, f"ours / {name}, clips/s", ratio, aim=AIMS[name] if on_gpu else None)


def profile(step: Step, part: str, device: torch.device) -> None:
    """Print which kernels take the most time of a step."""
    recording = Recording(device)
    recording.start()
    for _ in range(PROFILED_STEPS):
        step()
    trace = recording.stop()
    print(f"kernels of {PROFILED_STEPS} steps of ours:")
    trace.show(16)
    record(part, "ours: share of the time that the device was idle", trace.idle_share)
    record(part, "ours: waits for the device a step", trace.num_synchronisations / PROFILED_STEPS)


def free_memory(device: torch.device) -> None:
    """Free the memory of sides that are no longer used."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
