"""The whole training loop on one device and the bare step: what loading and augmenting cost.

In: data sets that `prepared_sets` made. Steps: for each store (fbanks, or audio that is decoded,
mixed and turned into fbanks during training) run `train` without Ray; time the bare step, on one
batch that stays on the device, before and after it in the same process; record some steps of the
second epoch with PyTorch's profiler. Out: figures (see `figures`): clips per second, their share of
the bare step's, and the shares of time that the loop waited for data and that the device was idle.

    python benchmarks/prepared_sets.py FOLDER
    python benchmarks/train_loop.py FOLDER

Clips per second are the median over the points of the curve after the first epoch, in which graphs
are compiled, without the recorded point.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from device_clock import Recording, Trace, default_device, seconds
from figures import record
from train_sides import Task, ours, random_batch

from pipeline.dataset.prepared import PreparedDataset, open_dataset
from trainer.recipe.parse import make_recipe
from trainer.recipe.recipe import Recipe
from trainer.run.history import read_history
from trainer.run.run_progress import RunProgress
from trainer.training.loop import train
from trainer.training.world import World

STORES = ("fbank", "audio")
AIM_SHARE = 0.95
"""Share of the bare step's clips per second to reach on a GPU."""
POINT_STEPS = 8
"""Steps between two points of the curve."""


def main() -> None:
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stores", nargs="+", choices=STORES, default=STORES)
    parser.add_argument("--batch-size", type=int, default=32 if has_gpu else 4)
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    device = default_device()
    recipe = make_recipe(
        "loop",
        {
            "model": {
                "backbone": f"deit_{'base' if has_gpu else 'tiny'}_distilled_patch16_224",
                "pretrained": False,
                "depth": 0 if has_gpu else 1,
                "num_frames": 1024 if has_gpu else 128,
                "compile": True,
            },
            # Clips are read from the shards in each epoch, as with a large data set.
            "loader": {"cache_mb": 0},
            "augment": {"time_mask": 192 if has_gpu else 24},
            "train": {
                "epochs": arguments.epochs,
                "batch_size": arguments.batch_size,
                "precision": "bfloat16" if has_gpu else "float32",
                "log_every_steps": POINT_STEPS,
            },
        },
        where="benchmark",
    )
    for store in arguments.stores:
        measure(f"train_loop, {store}", recipe, open_dataset(f"{arguments.folder}/{store}"), device)


def measure(part: str, recipe: Recipe, dataset: PreparedDataset, device: torch.device) -> None:
    """Run the loop, between two timings of the bare step."""
    before_s = bare_step_s(recipe, device)
    with tempfile.TemporaryDirectory() as run:
        recorder = Recorder(device)
        train(recipe, dataset, run, world=World(device=device), report=recorder.report)
        points = read_history(run).steps
    bare_s = min(before_s, bare_step_s(recipe, device))
    steady = [point for point in points if point.epoch > 1 and not recorder.has_slowed(point.step)]
    if not steady:
        sys.exit(f"{part}: no step after the first epoch to measure; give more clips or --epochs")
    clips_per_s = statistics.median(point.clips_per_s or 0.0 for point in steady)
    bare = recipe.train.batch_size / bare_s
    waits = statistics.mean(point.data_wait_share or 0.0 for point in steady)
    aim = AIM_SHARE if device.type == "cuda" else None
    print(f"\n{part}")
    print(record(part, "loop", clips_per_s, "clips/s"))
    print(record(part, "bare step", bare, "clips/s"))
    print(record(part, "loop / bare step", clips_per_s / bare, aim=aim))
    print(record(part, "share of the time that the loop waited for data", waits))
    trace = recorder.trace
    if trace is None:
        raise SystemExit(f"{part}: the second epoch has too few steps to record some")
    print(record(part, "share of the time that the device was idle", trace.idle_share))
    print(record(part, "waits for the device in the steps recorded", trace.num_synchronisations))
    trace.show()


def bare_step_s(recipe: Recipe, device: torch.device) -> float:
    """Seconds per step on a batch that is already on the device, the median of five turns."""
    batch = random_batch(recipe.train.batch_size, recipe.model.num_frames, device)
    side = ours(Task(settings=recipe.model, batch=batch, precision=recipe.train.precision))
    for _ in range(3):
        side.step()

    def steps() -> None:
        for _ in range(POINT_STEPS):
            side.step()

    return statistics.median(seconds(steps, device) for _ in range(5)) / POINT_STEPS


class Recorder:
    """Records some steps of the second epoch, between two points of the curve."""

    def __init__(self, device: torch.device) -> None:
        self.trace: Trace | None = None
        self._device = device
        self._recording: Recording | None = None
        self._first_step = self._last_step = 0

    def report(self, progress: RunProgress) -> None:
        """Called by the loop after each step."""
        step = progress.step
        if self.trace or progress.epoch < 2:
            return
        if self._recording is None and step % POINT_STEPS == 0:
            self._first_step = step + 1
            self._recording = Recording(self._device)
            self._recording.start()
        elif self._recording and (step + 1) % POINT_STEPS == 0:
            # Before the curve's point, since reading the losses waits for the device.
            self.trace = self._recording.stop()
            self._last_step = step

    def has_slowed(self, step: int) -> bool:
        """Whether the point at this step covers recorded steps, or the trace's export."""
        return self._first_step <= step <= self._last_step + POINT_STEPS


if __name__ == "__main__":
    main()
