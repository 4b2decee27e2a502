"""What Ray Train runs for a training in processes of their own, beside the workers.

Apart from `trainer.on_ray.train`, so that these processes start without torch and timm: the workers
wait for them.
"""

import logging
from typing import Any

from ray.train import UserCallback

from pipeline.errors import PassingError, UserError
from pipeline.terminal import log
from trainer.run.run_progress import RunProgress

_logger = logging.getLogger(__name__)

MAX_RESTARTS_IN_PLACE = 3
"""Times a run starts again in a row without getting further before it gives up."""


class Board:
    """An actor that holds the latest progress of each run, for the driver to look at."""

    def __init__(self) -> None:
        self._runs: dict[str, RunProgress] = {}

    def put(self, progress: RunProgress) -> None:
        """Note what `trainer.training.loop.train` reports."""
        self._runs[progress.run] = progress

    def get(self) -> list[RunProgress]:
        """The latest of each run."""
        return list(self._runs.values())


class Failures(UserCallback):  # type: ignore[misc]
    """Decides, in Ray Train's controller, which failures of workers a new start can mend.

    A run of days may lose any number of workers; one that fails over and over at the same place
    does not get further.
    """

    def __init__(self, run_path: str, log_level: int) -> None:
        self._run_path = run_path
        self._log_level = log_level
        self._newest = ""
        self._num_in_place = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called before Ray Train starts the workers again; what is raised here ends the run."""
        log.set_up(self._log_level, is_worker=True)
        for error in worker_exceptions.values():
            if isinstance(error, UserError) and not isinstance(error, PassingError):
                raise error
        newest = self._newest_checkpoint()
        self._num_in_place = 1 if newest > self._newest else self._num_in_place + 1
        self._newest = newest
        rank, error = next(iter(worker_exceptions.items()))
        if self._num_in_place > MAX_RESTARTS_IN_PLACE:
            if not isinstance(error, UserError):
                # Ray Train's own error has no traceback of the worker.
                _logger.error("%s", "\n".join(getattr(error, "__notes__", ())))
            raise error
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        _logger.warning(
            "worker %d failed (%s); starting again from the last checkpoint", rank, reason
        )

    def _newest_checkpoint(self) -> str:
        """Its path, by which they are in order; empty without one."""
        # Only now: the workers wait for this process to start.
        from pipeline import storage

        try:
            return max(storage.list_files(storage.join(self._run_path, "checkpoints")), default="")
        except PassingError:
            return self._newest
