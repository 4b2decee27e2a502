"""Tell of lost nodes of the connected cluster, one line each, during a step of many small tasks."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import ray

from pipeline.threads import beside

_logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 3.0
_UNEXPECTED = 2
"""Why Ray says that a node is dead: not its end by a drain or the autoscaler. Of Ray's
`NodeDeathInfo`."""


@contextmanager
def telling_of_lost_nodes() -> Iterator[None]:
    """Log a warning for each node that is lost while the block runs."""
    with beside(partial(_follow, set(_lost())), name="nodes"):
        yield


def _follow(known: set[str], is_over: threading.Event) -> None:
    # Where the control service does not answer, the step itself says so.
    with suppress(ray.exceptions.RayError, OSError, RuntimeError):
        is_last = False
        while not is_last:
            # The last look comes after the step: what it had to do again may have been its last.
            is_last = is_over.wait(_LOOK_EVERY_S)
            lost = _lost()
            for node in lost.keys() - known:
                _logger.warning("node %s is lost; its work starts again elsewhere", lost[node])
            known |= lost.keys()


def _lost() -> dict[str, str]:
    """Addresses of the lost nodes by their ids."""
    return {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if not node["Alive"] and node["DeathReason"] == _UNEXPECTED
    }
