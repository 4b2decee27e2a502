"""Whether the workers of runs fit into the cluster, and how many runs at once."""

import logging
import math
from collections.abc import Collection
from dataclasses import replace

import ray

from pipeline.errors import UserError
from trainer.model.settings import Precision
from trainer.on_ray.memory import RUN_BYTES, WORKER_BYTES
from trainer.on_ray.settings import Workers
from trainer.recipe.recipe import Recipe

_logger = logging.getLogger(__name__)


def fit_workers(workers: Workers, *, runs: int = 1, model_bytes: int = 0) -> tuple[Workers, int]:
    """Decide on GPUs, and how many of `runs` runs fit into the connected cluster at once.

    Args:
        workers: those of each run.
        runs: how many there are to train.
        model_bytes: memory that each worker without a GPU needs beside its libraries.

    Raises:
        UserError: there is no room for even one; Ray would wait for ever, or the kernel would kill
            the workers.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (int(sum(node.get(name, 0) for node in nodes)) for name in ("CPU", "GPU"))
    if workers.use_gpu is None:
        workers = replace(workers, use_gpu=gpus > 0)
    # A worker needs one node: leftovers of several nodes do not add up to one.
    workers_per_node = [
        min(
            node.get("CPU", 0) // workers.cpus,
            node.get("GPU", 0) * workers.per_gpu if workers.use_gpu else math.inf,
        )
        for node in nodes
    ]
    fits = int(sum(workers_per_node)) // workers.num
    if fits < 1:
        kind = "a GPU" if workers.use_gpu else "no GPU"
        raise UserError(
            "",
            f"{workers.num} workers with {workers.cpus} CPUs and {kind} each do not fit into "
            f"this cluster of {len(nodes)} nodes, {cpus} CPUs and {gpus} GPUs",
            "lower --workers or "
            f"--cpus-per-worker{', or give --no-gpu' if workers.use_gpu else ''}",
        )
    own_bytes = WORKER_BYTES + (0 if workers.use_gpu else model_bytes)
    memory = [node.get("memory", math.inf) for node in nodes]
    held = _fit_memory(workers.num, own_bytes, workers_per_node, memory)
    if held < min(fits, runs):
        _logger.info("memory for %d of %d runs at once", held, min(fits, runs))
    return workers, min(fits, runs, held)


def _fit_memory(
    num_workers: int, own_bytes: int, workers_per_node: list[float], memory: list[float]
) -> int:
    """How many runs the memory of the nodes holds; raises as `fit_workers`."""
    run_bytes = RUN_BYTES + num_workers * own_bytes
    # Ray Train's helpers run wherever there is room.
    each = run_bytes / num_workers
    held = [
        min(by_cpu, node // each) for by_cpu, node in zip(workers_per_node, memory, strict=True)
    ]
    if (fits := int(sum(held)) // num_workers) < 1:
        raise UserError(
            "",
            f"{num_workers} workers need at least {run_bytes / 1e9:.1f} GB of memory, and Ray "
            f"leaves {sum(memory) / 1e9:.1f} GB on {len(memory)} nodes",
            "free or add memory, or lower --workers or train.micro_batch_size",
        )
    return fits


def note_workers(recipes: Collection[Recipe], workers: Workers) -> None:
    """Warn of settings that have no effect with these workers, or are slow on CPUs."""
    sizes = {(recipe.train.batch_size, recipe.train.micro_batch_size) for recipe in recipes}
    for size, micro in sorted(sizes):
        slice_size = math.ceil(size / workers.num)
        if slice_size <= micro < size:
            _logger.warning(
                "train.micro_batch_size: has no effect, as each of %d workers computes no more "
                "than %d clips of a batch",
                *(workers.num, slice_size),
            )
    if workers.num == 1 and any(recipe.train.sharding == "shard" for recipe in recipes):
        _logger.warning("train.sharding: has no effect with one worker")
    note_precision({recipe.train.precision for recipe in recipes}, workers, "train.precision")


def note_precision(precisions: set[Precision], workers: Workers, setting: str) -> None:
    """Warn of half precision on CPUs; `setting` asked for it."""
    half = sorted(precisions - {"float32"})
    if half and not workers.use_gpu:
        _logger.warning(
            "%s: %s on CPUs, many of which are far faster with float32",
            *(setting, " and ".join(half)),
        )
