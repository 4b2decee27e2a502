"""What length buckets save: an epoch of a recipe with and without them, in turns on one thread.

In: a recipe and a prepared data set. Steps: train an epoch with each, several times. Out: the best
clips per second of CPU time of each, and its loss, which shows whether both learn alike.

    .venv/bin/python benchmarks/length_buckets.py recipes/demo.toml build/demo/dataset 128 192
"""

import argparse
import math
import os
import tempfile
import time
from dataclasses import replace

import torch

from pipeline.dataset.prepared import PreparedDataset, open_dataset
from trainer.recipe.parse import load_recipe
from trainer.recipe.recipe import Recipe
from trainer.run.history import read_history
from trainer.run.run_progress import RunProgress
from trainer.training.loop import train
from trainer.training.world import World


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("data")
    parser.add_argument("bucket_frames", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = open_dataset(arguments.data)
    recipe = load_recipe(arguments.recipe, ["train.epochs=1"])
    edges = tuple(arguments.bucket_frames)
    sides = {
        (): recipe,
        edges: replace(recipe, sampler=replace(recipe.sampler, bucket_frames=edges)),
    }
    results: dict[tuple[int, ...], list[tuple[float, float]]] = {side: [] for side in sides}
    for _ in range(arguments.rounds):
        for side, side_recipe in sides.items():
            results[side].append(time_epoch(side_recipe, dataset))
    plain = max(rate for rate, _ in results[()])
    for side, epochs in results.items():
        rate, loss = max(epochs)
        name = f"buckets {[*side, recipe.model.num_frames]}"
        print(f"{name:32}{rate:8.1f} clips/s{rate / plain:8.2f} times   loss {loss:.4f}")
    print(f"load average {os.getloadavg()[0]:.1f}")


def time_epoch(recipe: Recipe, dataset: PreparedDataset) -> tuple[float, float]:
    """Clips per second of CPU time, after the first step, and the mean loss of the epoch."""
    times: list[tuple[int, float]] = []

    def note(progress: RunProgress) -> None:
        times.append((progress.step, time.process_time()))

    with tempfile.TemporaryDirectory() as run:
        train(recipe, dataset, run, world=World(), report=note)
        loss = read_history(run).epochs[0].train_loss or math.nan
    (first, start_s), (last, end_s) = times[0], times[-1]
    return (last - first) * recipe.train.batch_size / (end_s - start_s), loss


if __name__ == "__main__":
    main()
