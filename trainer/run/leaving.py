"""Leaving a run before its end, by request. Loads without PyTorch, as it crosses processes."""

from pipeline.errors import UserError


class LeavingError(Exception):
    """All workers have left a run at the same step, with a checkpoint, so that it can go on later.

    Without a checkpoint if steps were being skipped, or if the storage does not answer.
    """

    def __init__(self, step: int, reason: str = "") -> None:
        """Say where the run stands.

        Args:
            step: steps done.
            reason: why a worker asked for it; empty if it is not known.
        """
        super().__init__(step, reason)
        self.step, self.reason = step, reason


class StoppedError(UserError):
    """The step was stopped by a signal; the same command resumes its runs."""

    status = 143
    """The exit status: 128 and the number of SIGTERM."""
