"""Training steps on one device: ours, transformers', and the AST authors' as published, in one run.

In: a batch of noise that is on the device already. Steps: every side makes steps until it is warm,
compilers too; then the sides take turns. Out: for each batch size a table of medians, beside what a
matrix product reaches on the device in the same run, the ratios that are aimed at, and the kernels
that take our step's time; and figures (see `figures`).

    .venv/bin/python benchmarks/train_throughput.py

On a GPU that is the base model at stride 10 on 10 s clips; on a CPU a small one, to try the code.
The sides are in `train_sides`. A side that does not fit into memory, or into --seconds, is named.
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
"""How many times our clips a second are to be theirs, on a GPU."""
AIM_SHARE = 0.5
"""Of the matrix product's FLOP/s, for our step on a GPU."""
PROFILED_STEPS = 3


@dataclass(kw_only=True)
class Measured:
    """A side, warm, and what its turns took."""

    side: Side
    resident_bytes: int
    """Weights, gradients and optimiser on the GPU."""
    peak_bytes: int = 0
    """The most during a step."""
    step_s: list[float] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        return statistics.median(self.step_s)


def main() -> None:
    arguments = parse_arguments()
    # What a time limit sends: what was measured is shown before the end.
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
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin nothing after these")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument(
        "--attention",
        choices=[name.lower() for name in SDPBackend.__members__],
        help="compute it by this back-end of PyTorch alone",
    )
    parser.add_argument("--title", default="", help="what to add to the name of these figures")
    return parser.parse_args()


def attention(backend: str | None) -> contextlib.AbstractContextManager[None]:
    """Within it attention is computed by one back-end; None: by the one that PyTorch chooses."""
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
    """Measure sides by turns and show them, also when time is up; returns whether one failed."""
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
            # The other sides are measured all the same.
            has_failed = True
            measured.pop(name, None)
            lines = str(error).strip().splitlines() or [type(error).__name__]
            record(part, name, f"failed: {type(error).__name__}: {lines[0]}")
        free_memory(device)
    for _ in range(arguments.rounds - 1):
        for one in measured.values():
            take_turn(one, arguments.turn_s, device)
    return has_failed


def warmed_up(make: Callable[[Task], Side], task: Task) -> Measured:
    """A side after some steps, which compile it and make its optimiser's state."""
    device = task.batch.x.device
    before, start_s = allocated_bytes(device), time.perf_counter()
    side = make(task)
    for _ in range(3):
        side.step()
    synchronise(device)
    print(f"  ({make.__name__}: warm after {time.perf_counter() - start_s:.1f} s)", flush=True)
    return Measured(side=side, resident_bytes=allocated_bytes(device) - before)


def take_turn(measured: Measured, turn_s: float, device: torch.device) -> None:
    """Time some steps, at least one and for at least `turn_s`, and note the memory they took."""
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


def show(part: str, sides: dict[str, Measured], task: Task, ceiling: float) -> None:
    """The table, and the ratios beside their aims."""
    size, on_gpu = len(task.batch.x), task.batch.x.is_cuda
    print(
        f"{'':24}{'clips/s':>9}{'ms/step':>9}{'GFLOP/clip':>12}{'TFLOP/s':>9}{'share':>7}{'GB':>7}"
    )
    for name, one in sides.items():
        flops_per_s = one.side.flops * size / one.median_s
        gb = f"{one.peak_bytes / 1e9:7.1f}" if one.peak_bytes else f"{'-':>7}"
        print(
            f"{name:24}{size / one.median_s:9.1f}{1000 * one.median_s:9.1f}"
            f"{one.side.flops / 1e9:12.1f}{flops_per_s / 1e12:9.3g}{flops_per_s / ceiling:7.0%}{gb}"
        )
    for name, one in sides.items():
        share = one.side.flops * size / one.median_s / ceiling
        aim = AIM_SHARE if name == "ours" and on_gpu else None
        record(part, name, size / one.median_s, "clips/s")
        record(part, f"{name}: share of the matrix product's FLOP/s", share, aim=aim)
        record(part, f"{name}: a step", 1000 * one.median_s, "ms")
        if one.peak_bytes:
            record(part, f"{name}: peak memory", one.peak_bytes / 1e9, "GB")
    for name, one in sides.items():
        if "ours" in sides and name in AIMS:
            ratio = one.median_s / sides["ours"].median_s
            record(part, f"ours / {name}, clips/s", ratio, aim=AIMS[name] if on_gpu else None)


def profile(step: Step, part: str, device: torch.device) -> None:
    """Show what a step spends its time on, by kernels."""
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
    """What the sides that are gone held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
