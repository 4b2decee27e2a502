"""Which errors of Ray Train's controller a new group of workers can repair."""

import logging
import time
from typing import Any

from ray.exceptions import RayActorError

# Ray 2.60 gives up when a worker is lost in the seconds in which all load the training function,
# and has no option for it.
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy

from pipeline.on_ray import process

_logger = logging.getLogger(__name__)

MAX_LOST_AT_START = 5
"""Groups that lose a worker while they start, each within `_IN_A_ROW_S` of the one before."""
_IN_A_ROW_S = 600.0


class Retrying(DefaultFailurePolicy):  # type: ignore[misc]
    """Runs in Ray Train's controller."""

    def __init__(self, failure_config: Any, log_level: int) -> None:
        super().__init__(failure_config)
        self._log_level = log_level
        self._lost_at: list[float] = []

    def _is_retryable_error(self, training_failed_error: Any) -> bool:
        if super()._is_retryable_error(training_failed_error):
            return True
        cause = getattr(training_failed_error, "controller_failure", None)
        if not isinstance(cause, RayActorError):
            return False
        now = time.monotonic()
        if self._lost_at and now - self._lost_at[-1] > _IN_A_ROW_S:
            self._lost_at.clear()
        self._lost_at.append(now)
        if len(self._lost_at) > MAX_LOST_AT_START:
            return False
        process.set_up(self._log_level)
        _logger.warning("a worker was lost while it started; starting the workers again")
        return True
