"""What runs in processes of Ray beside the workers of a training.

These processes must start fast, as the workers wait for them: this module loads neither PyTorch nor
timm.
"""

import asyncio
import logging
from collections import defaultdict
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train import UserCallback

from pipeline.errors import PassingError, UserError, last_line
from pipeline.terminal import log
from trainer.checkpoints.progress import EpochResult
from trainer.run.leaving import LeavingError, StoppedError
from trainer.run.run_progress import RunProgress

_logger = logging.getLogger(__name__)

MAX_RESTARTS_IN_PLACE = 3
"""Restarts in a row without a new checkpoint before a run gives up."""


class Board:
    """An actor that holds the latest progress of each run for the driver, and its word to stop."""

    def __init__(self) -> None:
        self._runs: dict[str, RunProgress] = {}
        self._is_stopping = False

    def put(self, progress: RunProgress) -> bool:
        """Store what `trainer.training.loop.train` reports; returns `is_stopping`."""
        self._runs[progress.run] = progress
        return self._is_stopping

    def get(self) -> list[RunProgress]:
        """The latest progress of each run."""
        return list(self._runs.values())

    def stop(self) -> None:
        """Let all runs leave with a checkpoint, and none start."""
        self._is_stopping = True

    def is_stopping(self) -> bool:
        """Whether all runs are to leave."""
        return self._is_stopping


class Referee:
    """An actor between the workers of runs, which ask whether to go on, and what decides it.

    A worker that was lost while it waited leaves its question behind: only the newest is answered.
    """

    def __init__(self) -> None:
        self._results: dict[str, asyncio.Queue[EpochResult]] = defaultdict(asyncio.Queue)
        self._asked: dict[str, asyncio.Future[bool]] = {}
        self._stopped: set[str] = set()

    async def ask(self, run: str, result: EpochResult) -> bool:
        """Hand in the scores of an epoch of a run, and wait for the answer."""
        if run in self._stopped:
            return False
        self._asked[run] = asyncio.get_running_loop().create_future()
        self._results[run].put_nowait(result)
        return await self._asked[run]

    async def next_result(self, run: str) -> EpochResult:
        """Wait for the scores of a run's next epoch."""
        return await self._results[run].get()

    async def go_on(self, run: str) -> None:
        """Answer the newest question of a run."""
        self._answer(run, is_yes=True)

    async def stop(self, run: str) -> None:
        """Answer this and all later questions of a run with no."""
        self._stopped.add(run)
        self._answer(run, is_yes=False)

    def _answer(self, run: str, *, is_yes: bool) -> None:
        asked = self._asked.pop(run, None)
        if asked and not asked.done():
            asked.set_result(is_yes)


class Failures(UserCallback):  # type: ignore[misc]
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

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called before Ray Train restarts the workers; an error raised here ends the run."""
        log.set_up(self._log_level, is_worker=True)
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
        _logger.warning("%s; restarting from %s", _explain(worker_exceptions), place)

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


def _explain(worker_exceptions: dict[int, Exception]) -> str:
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
    nodes = {
        node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if not node["Alive"]
    }
    for node, address in nodes.items():
        if ranks := [rank for rank, cause in lost.items() if node in str(cause)]:
            return f"{len(ranks)} of the workers were lost with node {address}"
    # Others fail since one of them is gone.
    rank, error = next(iter((lost or worker_exceptions).items()))
    reason = "its process was killed or crashed" if lost else last_line(error)
    return f"worker {rank} failed ({reason})"
