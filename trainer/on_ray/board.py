"""Actors between the driver and the workers of trainings.

They must start fast, as the driver waits for them: this module loads neither PyTorch nor Ray Train.
"""

import asyncio
from collections import defaultdict

from trainer.checkpoints.progress import EpochResult
from trainer.run.run_progress import RunProgress


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
