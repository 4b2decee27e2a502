"""Tasks on Ray Data: each item is a row of a Ray Data set, processed by one task on one CPU.

Ray reruns tasks whose worker or node dies, a few times.
"""

import logging
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

# Read when Ray Data is imported. Its thread for the metadata of finished tasks keeps a CPU waiting
# for 0.14 s until the next task; without it, 0.03 s.
os.environ.setdefault("RAY_DATA_METADATA_PREFETCH_ON_THREAD", "0")

import ray
import ray.data

from pipeline.errors import UserError
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
) -> Iterator[dict[str, Any]]:
    """Call the task on every item, as many at once as fit; yields the results in no fixed order.

    Args:
        items: small dictionaries, one per task.
        task: a function that can be pickled.
        memory_bytes: requested from Ray for each task, capped at the memory of the largest node:
            a larger request would never be scheduled.

    Raises:
        UserError: a task raised it, or no node has memory for a task without data.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # It would print every plan, and errors before we do; its log file still has everything.
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)
    rows = ray.data.from_items(list(items), override_num_blocks=len(items))
    memory = _memory(len(items), memory_bytes)
    with warnings.catch_warnings():
        # Ray 2.60 deprecates such arguments, and has no other way to limit the repetitions.
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        tasks = rows.map(
            partial(_attempt, task, log.level()), num_cpus=1, memory=memory, max_retries=MAX_LOST
        )
    return _results(tasks)


def _results(tasks: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    for row in tasks.iter_rows():
        if _ERROR in row:
            raise pickle.loads(row[_ERROR])
        yield row


def _memory(num_tasks: int, task_bytes: float) -> float:
    """The memory to request for a task; says so if there is too little for one on each CPU."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    largest = max(float(node.get("memory", 0)) for node in nodes)
    if largest < TASK_MEMORY_BYTES:
        raise UserError(
            "",
            f"a task needs {TASK_MEMORY_BYTES / 1e9:.1f} GB of memory, and Ray leaves "
            f"{largest / 1e9:.2f} GB for tasks on the largest of {len(nodes)} nodes",
            "free or add memory",
        )
    task_bytes = min(task_bytes, largest)
    cpus = int(sum(node.get("CPU", 0) for node in nodes))
    fits = int(sum(min(node.get("CPU", 0), node.get("memory", 0) // task_bytes) for node in nodes))
    if fits < min(cpus, num_tasks):
        _logger.info(
            "memory for %d tasks at once, of %.1f GB each, on %d CPUs", fits, task_bytes / 1e9, cpus
        )
    return task_bytes


def _attempt(
    task: Callable[[dict[str, Any]], dict[str, Any]], log_level: int, row: dict[str, Any]
) -> dict[str, Any]:
    """The task's result, or its `UserError` as data: Ray Data keeps only the text of tracebacks."""
    log.set_up(log_level, is_worker=True)
    try:
        return task(row)
    except UserError as error:
        return {_ERROR: pickle.dumps(error)}
