"""Tasks on Ray Data: each item is a row of a Ray Data set, processed by one task on one CPU.

Ray reruns tasks whose worker or node dies, a few times.
"""

import logging
import math
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

# Read when Ray Data is imported. Its thread for the metadata of finished tasks keeps a CPU waiting
# for 0.14 s until the next task; without it, 0.03 s.
os.environ.setdefault("RAY_DATA_METADATA_PREFETCH_ON_THREAD", "0")

import ray
import ray.data

from pipeline.errors import UserError
from pipeline.on_ray import process
from pipeline.on_ray.nodes import (
    NODE_ID_LABEL,
    Need,
    Nodes,
    cluster_nodes,
    plural,
    room,
    wait_for_nodes,
)
from pipeline.on_ray.quiet import quiet_ray_data
from pipeline.on_ray.settings import WAIT_FOR_NODES_S
from pipeline.on_ray.shared_files import SharedPaths, check_here, check_shared, seen_here
from pipeline.terminal import log

_ERROR = "error"
"""Key of a row that holds a pickled error instead of a result."""

TASK_MEMORY_BYTES = 500_000_000
"""Memory of a task with its libraries, before it holds any data."""

MAX_LOST = 5
"""How often a task is repeated whose worker or node dies: one that dies each time, such as for lack
of memory, would be repeated for ever."""

_logger = logging.getLogger(__name__)


def run_tasks(
    items: Sequence[dict[str, Any]],
    task: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    memory_bytes: float,
    shared: SharedPaths | None = None,
    wait_s: float = WAIT_FOR_NODES_S,
) -> Iterator[dict[str, Any]]:
    """Call the task on every item, as many at once as fit; yields the results in no fixed order.

    Nodes that join get tasks, too. Nodes with GPUs get some only while no others can hold a task.

    Args:
        items: small dictionaries, one per task.
        task: a function that can be pickled.
        memory_bytes: requested from Ray for each task, capped at the memory of the largest node:
            a larger request would never be scheduled.
        shared: local paths that the tasks use; refused if not all nodes see them.
        wait_s: how long to wait for a first node that an autoscaler starts.

    Raises:
        UserError: a task raised it; no node has memory for a task without data, or none came; or
            the nodes do not see the same files.
    """
    quiet_ray_data()
    nodes = cluster_nodes()
    memory = _memory(nodes, len(items), memory_bytes)
    _wait_for_a_node(nodes, memory, wait_s)
    shared = shared or SharedPaths()
    check_shared(shared)
    rows = ray.data.from_items(list(items), override_num_blocks=len(items))
    with warnings.catch_warnings():
        # Ray 2.60 deprecates such arguments, and has no other way to limit the repetitions
        # or to choose nodes.
        warnings.filterwarnings("ignore", message="`ray_remote_args(_fn)?` is deprecated")
        tasks = rows.map(
            partial(_attempt, task, seen_here(shared), log.level()),
            num_cpus=1,
            memory=memory,
            max_retries=MAX_LOST,
            scheduling_strategy="DEFAULT",
            ray_remote_args_fn=partial(away_from_gpus, _each(memory)),
        )
    return _results(tasks)


def _results(tasks: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    for row in tasks.iter_rows():
        if _ERROR in row:
            raise pickle.loads(row[_ERROR])
        yield row


def _memory(nodes: Nodes, num_tasks: int, task_bytes: float) -> float:
    """The memory to request for a task; says so if there is too little for one on each CPU."""
    if nodes.is_open:
        return task_bytes
    able = [node for node in nodes.possible(_each(TASK_MEMORY_BYTES)) if node.get("CPU", 0) >= 1]
    largest = max((float(node.get("memory", math.inf)) for node in able), default=math.inf)
    if largest < TASK_MEMORY_BYTES:
        raise UserError(
            "",
            f"a task needs {TASK_MEMORY_BYTES / 1e9:.1f} GB of memory, and Ray leaves "
            f"{largest / 1e9:.2f} GB for tasks on the largest of {plural(len(able), 'node')}",
            "free or add memory",
        )
    task_bytes = min(task_bytes, largest)
    cpus, fits = (room(able, each) for each in ({"CPU": 1.0}, _each(task_bytes)))
    if fits < min(cpus, num_tasks):
        _logger.info(
            "memory for %d tasks at once, of %.1f GB each, on %d CPUs", fits, task_bytes / 1e9, cpus
        )
    return task_bytes


def _each(memory_bytes: float) -> dict[str, float]:
    """What a task takes of its node."""
    return {"CPU": 1.0, "memory": memory_bytes}


def _wait_for_a_node(nodes: Nodes, memory_bytes: float, wait_s: float) -> None:
    """Wait until one task can start; Ray Data then asks for more nodes, as many as are of use.

    Where there are only nodes with GPUs, waits for one without, if one may be started.
    """
    need = Need(
        num=1,
        each=_each(memory_bytes),
        what=f"a task with 1 CPU and {memory_bytes / 1e9:.1f} GB of memory",
        remedy="add nodes with CPUs",
    )
    others = nodes.without_gpus()
    is_only_on_gpus = room(nodes.live, need.each) and not room(others.live, need.each)
    if not (is_only_on_gpus and room(others.possible(need.each), need.each)):
        wait_for_nodes(need, nodes, wait_s=wait_s)
        return
    apart = replace(need, without_gpus=True, what=f"{need.what}, on a node without GPUs")
    try:
        wait_for_nodes(apart, nodes, wait_s=wait_s)
    except UserError as error:
        _logger.warning("%s: nodes with GPUs are used", error.what)


def away_from_gpus(each: dict[str, float]) -> dict[str, Any]:
    """Ray's options that keep a task off the nodes with GPUs, if others can hold what it takes.

    Called for each task, as nodes come and go: only tasks that wait already may go to a node with
    GPUs that joins. Ray's default strategy alone would use such nodes once the others are busy.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    with_gpus = [node["NodeID"] for node in alive if node["Resources"].get("GPU", 0)]
    others = [node["Resources"] for node in alive if not node["Resources"].get("GPU", 0)]
    if with_gpus and room(others, each):
        return {"label_selector": {NODE_ID_LABEL: f"!in({','.join(with_gpus)})"}}
    return {}


def _attempt(
    task: Callable[[dict[str, Any]], dict[str, Any]],
    paths: Sequence[str],
    log_level: int,
    row: dict[str, Any],
) -> dict[str, Any]:
    """The task's result, or its `UserError` as data: Ray Data keeps only the text of tracebacks."""
    process.set_up(log_level)
    try:
        check_here(paths)
        return task(row)
    except UserError as error:
        return {_ERROR: pickle.dumps(error)}
