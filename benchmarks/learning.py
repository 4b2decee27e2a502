"""A real run on one device: does the loss fall, and does the loop avoid hidden costs?

In: the data set `sounds` that `prepared_sets` made, 5 s clips of ten classes stored as audio.
Steps: `train` without Ray, the base model from random weights in bfloat16, with mixup, masks and
noise, until --seconds have passed or all epochs are done. PyTorch logs graph breaks and recompiles;
CUDA raises if a step would wait for the device. Out: figures (see `figures`); the exit status is 1
if the loss did not fall or a hidden cost was found.

    python benchmarks/prepared_sets.py FOLDER
    python benchmarks/learning.py FOLDER

On a CPU a small model runs a few epochs, to try the code.
"""

import argparse
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from device_clock import default_device
from figures import record
from torch import Tensor

from pipeline.dataset.prepared import open_dataset
from pipeline.fbank import fbank
from pipeline.fbank_settings import FbankSettings
from trainer.recipe.parse import make_recipe
from trainer.run.history import read_history
from trainer.run.run_progress import RunProgress
from trainer.training import loop
from trainer.training.world import World

PART = "learning"
FALL = 0.8
"""The last epoch's training loss must be at most this share of the first epoch's."""


class TimeIsUpError(Exception):
    """Ends the run from within the loop."""


class CompilerLog(logging.Handler):
    """Collects the compiler's messages on graphs, the first epoch apart from later ones."""

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 1
        self.graph_breaks: list[str] = []
        self.early_recompiles: list[str] = []
        self.late_recompiles: list[str] = []

    def emit(self, log: logging.LogRecord) -> None:
        if "graph_breaks" in log.name:
            self.graph_breaks.append(log.getMessage())
        elif self.epoch == 1:
            self.early_recompiles.append(log.getMessage())
        else:
            self.late_recompiles.append(log.getMessage())


def main() -> None:
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=110.0 if has_gpu else 600.0)
    parser.add_argument("--epochs", type=int, default=40 if has_gpu else 4)
    parser.add_argument("--batch-size", type=int, default=24 if has_gpu else 8)
    arguments = parser.parse_args()
    device = default_device()
    dataset = open_dataset(str(arguments.folder / "sounds"))
    recipe = make_recipe(
        "learning",
        {
            "model": {
                "backbone": f"deit_{'base' if has_gpu else 'tiny'}_distilled_patch16_224",
                "pretrained": False,
                "depth": 0 if has_gpu else 2,
                "num_frames": 512 if has_gpu else 128,
                "compile": True,
            },
            "augment": {"frequency_mask": 24, "time_mask": 24, "noise": True, "roll_frames": 8},
            "schedule": {
                "lr": 1e-4 if has_gpu else 1e-3,
                "warmup_steps": 20,
                "warmup_every_steps": 1,
            },
            "train": {
                "epochs": arguments.epochs,
                "batch_size": arguments.batch_size,
                "precision": "bfloat16" if has_gpu else "float32",
                "log_every_steps": 5,
                "checkpoint_every_s": 3600.0,
            },
        },
        where="benchmark",
    )
    compiler = watch_compiler()
    deadline_s = time.monotonic() + arguments.seconds

    def report(progress: RunProgress) -> None:
        compiler.epoch = progress.epoch
        if time.monotonic() > deadline_s:
            raise TimeIsUpError

    start_s = time.monotonic()
    waits = WaitWatch(device, compiler)
    with tempfile.TemporaryDirectory() as run, patch.object(loop, "_step", waits.watch(loop._step)):
        try:
            loop.train(recipe, dataset, run, world=World(device=device), report=report)
        except TimeIsUpError:
            print("time is up", flush=True)
        history = read_history(run)
    wall_s = time.monotonic() - start_s
    epochs, points = history.epochs, history.steps
    if len(epochs) < 2:
        sys.exit(f"{PART}: {len(epochs)} epochs in {wall_s:.0f} s are too few to judge the loss")
    # NaN if every step of the epoch was skipped, which does not count as a fall.
    first, last = (
        math.nan if epoch.train_loss is None else epoch.train_loss
        for epoch in (epochs[0], epochs[-1])
    )
    print(record(PART, "wall time", wall_s, "s"))
    print(record(PART, "epochs", len(epochs)))
    print(record(PART, "steps that were skipped", sum(point.num_bad_steps for point in points)))
    print(record(PART, "loss of the first epoch", first))
    print(record(PART, "loss of the last epoch", last))
    print(record(PART, "mAP after the first epoch", epochs[0].mAP or 0.0))
    print(record(PART, "mAP after the last epoch", epochs[-1].mAP or 0.0))
    print(record(PART, "graph breaks", len(compiler.graph_breaks)))
    # An incomplete batch and the evaluation each need another graph.
    print(record(PART, "recompiles in the first epoch", len(compiler.early_recompiles)))
    print(record(PART, "recompiles after the first epoch", len(compiler.late_recompiles)))
    print(record(PART, "steps in which a wait for the device would have raised", waits.num_steps))
    for text in compiler.graph_breaks + compiler.late_recompiles:
        print(text)
    if not last <= FALL * first:
        sys.exit(f"{PART}: the loss fell from {first:.4f} to {last:.4f}, not to {FALL:.0%} of it")
    if compiler.graph_breaks or compiler.late_recompiles:
        sys.exit(f"{PART}: graph breaks or late recompiles, see above")


def watch_compiler() -> CompilerLog:
    """Make PyTorch log graph breaks and recompiles, and collect them."""
    torch._logging.set_logs(graph_breaks=True, recompiles=True)  # type: ignore[attr-defined]
    handler = CompilerLog()
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch") and ("graph_breaks" in name or "recompiles" in name):
            logging.getLogger(name).addHandler(handler)
    return handler


class WaitWatch:
    """Makes CUDA raise RuntimeError if a training step would wait for the device.

    From the second epoch on, since the compiler times its kernels in the first.
    """

    def __init__(self, device: torch.device, compiler: CompilerLog) -> None:
        self.num_steps = 0
        """Steps that were watched; none on a CPU."""
        self._compiler = compiler
        self._on_gpu = device.type == "cuda"
        if self._on_gpu:
            # The first fbank copies its filters to the device, and the host waits for that.
            fbank(torch.zeros(1, 16_000, device=device), FbankSettings())

    def watch(self, step: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The step, watched."""

        @wraps(step)
        def watched(*arguments: Any) -> Tensor:
            if not self._on_gpu or self._compiler.epoch == 1:
                return step(*arguments)
            self.num_steps += 1
            torch.cuda.set_sync_debug_mode("error")
            try:
                return step(*arguments)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return watched


if __name__ == "__main__":
    main()
