"""What runs in Ray Train's controller.

The workers wait for it to start: this module loads neither PyTorch nor timm.
"""

import logging
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError

# Ray 2.60 tells the public `UserCallback` of failures, but not where the workers were.
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from pipeline.errors import PassingError, UserError, last_line
from pipeline.on_ray import process
from pipeline.on_ray.silent_nodes import silent_nodes
from trainer.run.leaving import LeavingError, StoppedError

_logger = logging.getLogger(__name__)

MAX_RESTARTS_IN_PLACE = 3
"""Restarts in a row without a new checkpoint before a run gives up."""


class Failures(WorkerGroupCallback):  # type: ignore[misc]
    """Decides, in Ray Train's controller, which failures of workers a restart can repair.

    A long run may lose any number of workers, as long as new checkpoints appear between them.
    """

    def __init__(self, run_path: str, log_level: int, board: Any = None) -> None:
        """`board`: the actor `Board`; None: the run cannot be stopped with a checkpoint."""
        self._run_path = run_path
        self._log_level = log_level
        self._board = board
        self._newest = ""
        self._num_in_place = 0
        self._nodes: list[str] = []

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Set up the controller's process, and note the node of each rank."""
        process.set_up(self._log_level)
        self._nodes = [worker.metadata.node_id for worker in worker_group.get_workers()]

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Called before Ray Train restarts the workers; an error raised here ends the run."""
        if worker_group_status.errors:
            self._decide(worker_group_status.errors)

    def _decide(self, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            # Also of a storage that does not answer: the worker has waited for it.
            if isinstance(error, UserError):
                raise error
        newest = self._newest_checkpoint()
        self._num_in_place = 1 if newest > self._newest else self._num_in_place + 1
        self._newest = newest
        place = f"step {int(newest[-11:-3])}" if newest else "the start"
        if self._is_stopping():
            raise StoppedError(
                self._run_path,
                f"stopped; its newest checkpoint is of {place}" if newest else "stopped",
                "run the same command again to resume",
            )
        error = next(iter(worker_exceptions.values()))
        if self._num_in_place > MAX_RESTARTS_IN_PLACE:
            notes = getattr(error, "__notes__", ())
            if notes and not isinstance(error, UserError):
                # Ray Train's error lacks the traceback of the worker.
                _logger.error("%s", "\n".join(notes))
            raise error
        why = _explain(worker_exceptions, self._nodes)
        _logger.warning("%s: %s; restarting from %s", _name(self._run_path), why, place)

    def _is_stopping(self) -> bool:
        return self._board is not None and ray.get(self._board.is_stopping.remote())

    def _newest_checkpoint(self) -> str:
        """Its path, which grows with the step; empty without one."""
        # Imported here, so that this process starts fast.
        from pipeline import storage

        try:
            return max(storage.list_files(storage.join(self._run_path, "checkpoints")), default="")
        except PassingError:
            return self._newest


def _name(run_path: str) -> str:
    return run_path.rstrip("/").rpartition("/")[2]


def _explain(worker_exceptions: dict[int, Exception], node_of_rank: Sequence[str]) -> str:
    """Why the workers of a run failed, in a few words: Ray's own are pages long."""
    leaving = [error for error in worker_exceptions.values() if isinstance(error, LeavingError)]
    if leaving:
        reason = next((error.reason for error in leaving if error.reason), "by request")
        return f"the workers have left ({reason})"
    lost = {
        rank: cause
        for rank, error in worker_exceptions.items()
        if isinstance(cause := getattr(error, "health_check_failure", error), RayActorError)
    }
    if lost_nodes := set(node_of_rank) & (gone := _gone_nodes()).keys():
        num = sum(node in lost_nodes for node in node_of_rank)
        names = " and ".join(sorted(gone[node] for node in lost_nodes))
        is_lost = "node {} is" if len(lost_nodes) == 1 else "nodes {} are"
        return f"{is_lost.format(names)} lost with {num} of {len(node_of_rank)} workers"
    # Others fail since one of them is gone.
    rank, error = next(iter((lost or worker_exceptions).items()))
    reason = "its process was killed or crashed" if lost else last_line(error)
    return f"worker {rank} failed ({reason})"


def _gone_nodes() -> dict[str, str]:
    """Addresses of the nodes that are lost, whether Ray knows it or not, by their ids."""
    dead = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if not node["Alive"]}
    return dead | silent_nodes()
