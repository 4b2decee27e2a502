"""What Ray Train runs for a training in processes of their own, beside the workers.

Apart from `trainer.ray_train`, so that these processes start without torch and timm: the workers
wait for them.
"""

import sys
from typing import Any

from ray.train import UserCallback

from pipeline.errors import UserError


class Board:
    """An actor that holds the latest progress of each run, for the driver to look at."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, Any]] = {}

    def put(self, values: dict[str, Any]) -> None:
        """Note what `trainer.loop.train` reports."""
        self._values[values["run"]] = values

    def get(self) -> list[dict[str, Any]]:
        """The latest of each run."""
        return list(self._values.values())


class Failures(UserCallback):  # type: ignore[misc]
    """Decides, in Ray Train's controller, which failures of workers a new start can mend."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called before Ray Train starts the workers anew; what is raised here ends the run."""
        for error in worker_exceptions.values():
            if isinstance(error, UserError):
                raise error
        rank, error = next(iter(worker_exceptions.items()))
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        print(
            f"worker {rank} failed ({reason}); starting again from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
