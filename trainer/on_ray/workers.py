"""The processes of a run: how many, with what, and whether they fit into the cluster."""

import logging
import math
from collections.abc import Collection
from dataclasses import replace

import ray

from pipeline.errors import UserError
from trainer.model.settings import Precision
from trainer.on_ray.settings import Workers
from trainer.recipe.recipe import Recipe

_logger = logging.getLogger(__name__)


def fit_workers(workers: Workers, *, runs: int = 1) -> tuple[Workers, int]:
    """Decide on GPUs, and how many of `runs` runs fit into the connected cluster side by side.

    Raises:
        UserError: not even one does; Ray would wait for ever.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (int(sum(node.get(name, 0) for node in nodes)) for name in ("CPU", "GPU"))
    if workers.use_gpu is None:
        workers = replace(workers, use_gpu=gpus > 0)
    # A worker is on one node, so what is left over on several nodes makes no place for another.
    places = [
        min(
            node.get("CPU", 0) // workers.cpus,
            node.get("GPU", 0) if workers.use_gpu else math.inf,
        )
        for node in nodes
    ]
    fits = int(sum(places)) // workers.num
    if fits < 1:
        kind = "a GPU" if workers.use_gpu else "no GPU"
        raise UserError(
            "",
            f"{workers.num} workers with {workers.cpus} CPUs and {kind} each do not fit into "
            f"this cluster of {len(nodes)} nodes, {cpus} CPUs and {gpus} GPUs",
            "lower --workers or "
            f"--cpus-per-worker{', or give --no-gpu' if workers.use_gpu else ''}",
        )
    return workers, min(fits, runs)


def note_workers(recipes: Collection[Recipe], workers: Workers) -> None:
    """Tell of what does not suit the workers: half precision on CPUs, which recipes for GPUs have.

    And of one worker that has nobody to share a model with, or several whose shares of a batch are
    small anyway.
    """
    for size, micro in sorted({(x.train.batch_size, x.train.micro_batch_size) for x in recipes}):
        share = math.ceil(size / workers.num)
        if share <= micro < size:
            _logger.warning(
                "train.micro_batch_size: without effect, as each of %d workers computes no more "
                "than %d clips of a batch",
                *(workers.num, share),
            )
    if workers.num == 1 and any(one.train.sharding == "shard" for one in recipes):
        _logger.warning("train.sharding: without effect, as there is one worker")
    note_precision({one.train.precision for one in recipes}, workers, "train.precision")


def note_precision(precisions: set[Precision], workers: Workers, setting: str) -> None:
    """Tell of half precision on CPUs; `setting` is what asked for it."""
    found = sorted(precisions - {"float32"})
    if found and not workers.use_gpu:
        _logger.warning(
            "%s: %s on CPUs, many of which are far faster with float32",
            *(setting, " and ".join(found)),
        )
