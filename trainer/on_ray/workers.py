"""Whether the workers of runs fit into the cluster, and how many runs at once."""

import logging
import math
from collections.abc import Collection
from dataclasses import replace

from pipeline.errors import UserError
from pipeline.on_ray.nodes import (
    Need,
    Nodes,
    NoSuchNodeError,
    cluster_nodes,
    plural,
    room,
    wait_for_nodes,
)
from pipeline.terminal.units import counted
from trainer.model.settings import Precision
from trainer.on_ray.settings import Workers
from trainer.recipe.recipe import Recipe

_logger = logging.getLogger(__name__)

_RUN_BYTES = 750_000_000
"""Ray Train's controller of a run, and its helpers."""
_WORKER_BYTES = 500_000_000
"""A worker with its libraries."""


def fit_workers(workers: Workers, *, runs: int = 1, model_bytes: int = 0) -> tuple[Workers, int]:
    """Decide on GPUs, and how many of `runs` runs fit into the connected cluster at once.

    With an autoscaler, counts what the cluster can grow to, and waits until there are nodes for one
    run.

    Args:
        workers: those of each run.
        runs: how many there are to train.
        model_bytes: memory that each worker without a GPU needs beside its libraries.

    Raises:
        UserError: there is no room for even one, or it did not come in time; Ray would wait for
            ever, or the kernel would kill the workers.
    """
    nodes = cluster_nodes()
    workers = _decide_on_gpus(workers, nodes)
    need = _need(workers)
    possible = nodes.possible(need.each)
    # A worker needs one node: leftovers of several nodes do not add up to one.
    num_possible = room(possible, need.each)
    fits = max(num_possible // workers.num, min(1, num_possible // workers.fewest))
    if nodes.is_open:
        wait_for_nodes(need, nodes, wait_s=workers.wait_s)
        return workers, runs
    if fits < 1:
        kind = "a GPU" if workers.use_gpu else "no GPU"
        raise UserError(
            "",
            f"this cluster of {nodes} has no room for {plural(workers.fewest, workers.kind)} with "
            f"{plural(workers.cpus, 'CPU')} and {kind} each",
            need.remedy,
        )
    own_bytes = _WORKER_BYTES + (0 if workers.use_gpu else model_bytes)
    workers_per_node = [float(room([node], need.each)) for node in possible]
    memory = [node.get("memory", math.inf) for node in possible]
    held = _fit_memory(workers.fewest, own_bytes, workers_per_node, memory)
    if held < min(fits, runs):
        _logger.info("memory for %d of %d runs at once", held, min(fits, runs))
    wait_for_nodes(need, nodes, wait_s=workers.wait_s)
    return workers, min(fits, runs, held)


def _decide_on_gpus(workers: Workers, nodes: Nodes) -> Workers:
    """Whether the workers get GPUs, if the user left it open.

    They do if a node has any, or one that may be started: a cluster that starts its GPU nodes when
    they are asked for must not train on CPUs.
    """
    if workers.use_gpu is not None or any(node.get("GPU", 0) for node in nodes.live):
        return replace(workers, use_gpu=workers.use_gpu is not False)
    on_gpus = replace(workers, use_gpu=True)
    if nodes.has("GPU"):
        _logger.info("no GPU is there yet, but can be started: each worker gets one")
        return on_gpus
    if nodes.is_open:
        try:
            wait_for_nodes(_need(on_gpus), nodes, wait_s=workers.wait_s)
            return on_gpus
        except NoSuchNodeError:
            _logger.info("this cluster starts no nodes for workers with GPUs: CPUs are used")
    return replace(workers, use_gpu=False)


def _need(workers: Workers) -> Need:
    """What the workers of a run need of the nodes."""
    each = {"CPU": float(workers.cpus), **({"GPU": workers.gpus} if workers.use_gpu else {})}
    gpus = f" and {plural(workers.gpus, 'GPU')}" if workers.use_gpu else ""
    one = workers.kind
    return Need(
        num=workers.fewest,
        each=each,
        what=f"{plural(workers.fewest, one)} with {plural(workers.cpus, 'CPU')}{gpus} each",
        remedy=f"lower --{one}s or --cpus-per-{one}"
        f"{', or give --no-gpu' if workers.use_gpu else ''}",
    )


def fixed_workers(workers: Workers) -> Workers:
    """As many workers as the connected cluster has room for now, if their number may change."""
    if not workers.least:
        return workers
    return replace(workers, num=max(workers.least, min(workers.num, room_now(workers))), least=0)


def room_now(workers: Workers) -> int:
    """How many such workers the live nodes of the connected cluster hold."""
    return room(cluster_nodes().live, _need(workers).each)


def _fit_memory(
    num_workers: int, own_bytes: int, workers_per_node: list[float], memory: list[float]
) -> int:
    """How many runs the memory of the nodes holds; raises as `fit_workers`."""
    run_bytes = _RUN_BYTES + num_workers * own_bytes
    # Ray Train's helpers run wherever there is room.
    each = run_bytes / num_workers
    held = [
        min(by_cpu, node // each) for by_cpu, node in zip(workers_per_node, memory, strict=True)
    ]
    if (fits := int(sum(held)) // num_workers) < 1:
        raise UserError(
            "",
            f"{counted(num_workers, 'worker needs', 'workers need')} at least "
            f"{run_bytes / 1e9:.1f} GB of memory, and Ray leaves "
            f"{sum(memory) / 1e9:.1f} GB on {plural(len(memory), 'node')}",
            "free or add memory, or lower --workers or train.micro_batch_size",
        )
    return fits


def note_workers(recipes: Collection[Recipe], workers: Workers) -> None:
    """Warn of settings that have no effect with these workers, or are slow on CPUs."""
    sizes = {(recipe.train.batch_size, recipe.train.micro_batch_size) for recipe in recipes}
    for size, micro in sorted(sizes):
        slice_size = math.ceil(size / workers.fewest)
        if slice_size <= micro < size:
            _logger.warning(
                "train.micro_batch_size: has no effect, as each of %d workers computes no more "
                "than %d clips of a batch",
                *(workers.fewest, slice_size),
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
