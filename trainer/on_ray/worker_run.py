"""What the workers of Ray Train run: the training loop, or the scoring of clips by several runs."""

import logging
from contextlib import nullcontext
from typing import Any

import ray
import ray.train
import torch

from pipeline.dataset.prepared import open_dataset
from trainer.checkpoints.progress import EpochResult
from trainer.on_ray.metrics import run_gauges, values_of
from trainer.on_ray.notices import reason
from trainer.on_ray.progress import Reporter
from trainer.recipe.parse import make_recipe
from trainer.run.run_progress import RunProgress
from trainer.training.evaluate_run import evaluate_run
from trainer.training.loop import train
from trainer.training.world import World


def train_run(config: dict[str, Any]) -> None:
    """Train or resume a run, as one of its workers."""
    name, settings = config["recipe"]
    referee, reporter = config["referee"], Reporter(config["board"])
    world = _world(config["threads"])

    def go_on(result: EpochResult) -> bool:
        answer: bool = ray.get(referee.ask.remote(config["run"], result))
        return answer

    with run_gauges(config["run"]) if world.is_first else nullcontext() as gauges:

        def report(progress: RunProgress) -> None:
            reporter.report(progress)
            if gauges is not None:
                gauges.set(values_of(progress))

        train(
            make_recipe(name, settings, where="recipe"),
            open_dataset(config["dataset"]),
            config["run"],
            world=world,
            report=report,
            asked=lambda: reason() or reporter.asked(),
            go_on=go_on if referee else None,
        )


def evaluate_runs(config: dict[str, Any]) -> None:
    """Score a split with weights of each of several runs, as one of the workers."""
    dataset, world = open_dataset(config["dataset"]), _world(config["threads"])
    for run_path, weights, name, settings in config["runs"]:
        evaluate_run(
            run_path,
            make_recipe(name, settings, where="recipe"),
            dataset,
            split=config["split"],
            fold=config["fold"],
            weights=weights,
            world=world,
        )


def _world(threads: int) -> World:
    """This worker's rank and device, once Ray Train has set up the process group."""
    # Ray Train prints what any library logs at INFO, such as botocore.
    logging.getLogger().setLevel(logging.WARNING)
    context = ray.train.get_context()
    device = _device()
    if device.type == "cpu":
        torch.set_num_threads(threads)
    else:
        torch.cuda.set_device(device)
    return World(rank=context.get_world_rank(), size=context.get_world_size(), device=device)


def _device() -> torch.device:
    if not ray.get_gpu_ids():
        return torch.device("cpu")
    # It takes part of a second to load.
    from ray.train.torch import get_device

    device: torch.device = get_device()
    return device
