"""Tasks on Ray Data; the only module of `pipeline` that imports Ray.

One row of the Ray Data set is one item, and one task of one CPU takes it. A task whose worker or
node dies is run again by Ray.
"""

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

# Read when Ray Data is imported. Its thread for the metadata of finished tasks keeps a CPU waiting
# for 0.14 s until the next task; without it, 0.03 s.
os.environ.setdefault("RAY_DATA_METADATA_PREFETCH_ON_THREAD", "0")

import ray
import ray.data

from pipeline.errors import UserError

_ERROR = "error"
"""Key of a row that holds a pickled error in place of a result."""

TASK_MEMORY_BYTES = 500_000_000
"""What a task takes with its libraries, before it holds any data."""


def run_tasks(
    items: Sequence[dict[str, Any]],
    task: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    memory_bytes: float,
) -> Iterator[dict[str, Any]]:
    """Call the task on every item, as many at a time as fit; yields what it returns, in no order.

    Raises:
        UserError: a task did.

    Args:
        items: what the tasks take, as small dictionaries.
        task: a function that can be sent to other processes.
        memory_bytes: what to ask Ray for; more than any node has would never be scheduled, so it
            is at most what the largest has.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # It would tell of every plan, and of an error before we do; its log file still has all of it.
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)
    nodes = [float(node["Resources"].get("memory", 0)) for node in ray.nodes() if node["Alive"]]
    rows = ray.data.from_items(list(items), override_num_blocks=len(items))
    tasks = rows.map(partial(_attempt, task), num_cpus=1, memory=min(memory_bytes, max(nodes)))
    for row in tasks.iter_rows():
        if _ERROR in row:
            raise pickle.loads(row[_ERROR])
        yield row


def _attempt(
    task: Callable[[dict[str, Any]], dict[str, Any]], row: dict[str, Any]
) -> dict[str, Any]:
    """What the task returns, or its `UserError`: Ray Data hands on only the text of a traceback."""
    try:
        return task(row)
    except UserError as error:
        return {_ERROR: pickle.dumps(error)}
