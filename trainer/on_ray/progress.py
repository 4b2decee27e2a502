"""The progress of runs in other processes: a board that workers report to, and a progress bar.

SIGTERM to the driver stops the runs by the same way: the workers read it where they report.
"""

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from types import FrameType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.terminal.progress import ProgressBar
from pipeline.terminal.units import counted
from pipeline.threads import beside
from trainer.on_ray.board import Board
from trainer.run.run_folder import run_name
from trainer.run.run_progress import RunProgress

_logger = logging.getLogger(__name__)

REPORT_EVERY_S = 0.5
"""Shortest time between two reports of a run, and between two updates of the bar."""
_SAY_WAITING_AFTER_S = 60.0
_ANSWER_S = 5.0
"""Longest wait for the board, since the end of the step waits for the thread that asks it."""
_FIGURES: dict[str, Callable[[float], str]] = {
    "num_bad_steps": lambda value: f"{counted(int(value), 'step')} skipped",
    "clips_per_s": lambda value: f"{value:.0f} clips/s",
    "data_wait_share": lambda value: f"{value:.0%} waiting for data",
    "peak_memory_bytes": lambda value: f"{value / 1e9:.1f} GB",
    "mfu": lambda value: f"{value:.0%} of peak FLOPs",
    "grad_norm": lambda value: f"gradient {value:.2g}",
}
"""Parts of the progress line; unknown figures and zeros are left out."""


LEAVE_S = 45.0
"""Time for the workers to write their checkpoints after SIGTERM; batch systems kill soon after."""


class Reporter:
    """A worker's side of the board."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._answer: Any = None
        self._reported_at = 0.0
        self._is_stopping = False

    def report(self, progress: RunProgress) -> None:
        """Report to the board, unless it was done just before; does not wait for it."""
        now = time.monotonic()
        if now - self._reported_at < REPORT_EVERY_S and progress.step < progress.num_steps:
            return
        self._reported_at = now
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            self._is_stopping = ray.get(self._answer)
        self._answer = self._board.put.remote(progress)

    def asked(self) -> str:
        """Why the runs are to stop; empty if they are not."""
        return "the step was told to stop" if self._is_stopping else ""


@contextmanager
def progress_board(num_runs: int) -> Iterator[Any]:
    """A board for workers to report to; a bar shows the steps of all runs while it exists.

    After SIGTERM, all runs leave with a checkpoint. It interrupts the block if none has begun, if
    that takes longer than `LEAVE_S`, or if it comes again.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # On this node, as the runs are to outlive any other.
    actor: Any = ray.remote(num_cpus=0)(Board)
    board = actor.options(scheduling_strategy=here).remote()
    is_stopping = threading.Event()
    show = partial(_show_progress, board, num_runs, is_stopping)
    try:
        with (
            beside(show, name="progress") as thread,
            _stopping_once(is_stopping, thread),
        ):
            yield board
    finally:
        ray.kill(board)


@contextmanager
def _stopping_once(is_stopping: threading.Event, thread: threading.Thread) -> Iterator[None]:
    """Take the first SIGTERM as a wish, if `thread` still follows the runs.

    Any other does what it did before.
    """
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        if is_stopping.is_set() or not thread.is_alive():
            before(number, frame)
        is_stopping.set()

    signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_progress(
    board: Any, num_runs: int, is_stopping: threading.Event, is_over: threading.Event
) -> None:
    """The progress thread."""
    try:
        _follow(board, num_runs, is_stopping, is_over)
    except ray.exceptions.RayError:
        # When the session ends during a run, the caller of the run says why.
        if is_stopping.is_set():
            _interrupt()


def _follow(
    board: Any, num_runs: int, is_stopping: threading.Event, is_over: threading.Event
) -> None:
    """Show the progress until it is over, or until there is nothing to stop."""
    runs: list[RunProgress] = []
    waiting_since = time.monotonic()
    while not runs:
        if is_over.wait(REPORT_EVERY_S):
            return
        runs = _newest(board, runs)
        if is_stopping.is_set() and not runs:
            # There is nothing to save.
            _interrupt()
            return
        if time.monotonic() - waiting_since > _SAY_WAITING_AFTER_S:
            waiting_since = time.monotonic()
            free = ray.available_resources()
            _logger.info(
                "still waiting for the first step: the workers are starting, or the cluster is "
                "busy (%g CPUs, %g GPUs free)",
                *(free.get("CPU", 0), free.get("GPU", 0)),
            )
    with ProgressBar("steps", _num_steps(runs, num_runs)) as bar:
        ends_at = math.inf
        while True:
            now_over = is_over.wait(REPORT_EVERY_S)
            runs = _newest(board, runs)
            bar.set_total(_num_steps(runs, num_runs))
            bar.update(sum(run.step for run in runs), _notes(runs, num_runs))
            if now_over:
                return
            ends_at = _stop(board, ends_at, is_stopping)


def _newest(board: Any, before: list[RunProgress]) -> list[RunProgress]:
    """The progress of the runs; as it was `before` if the board does not answer in time."""
    try:
        runs: list[RunProgress] = ray.get(board.get.remote(), timeout=_ANSWER_S)
    except ray.exceptions.GetTimeoutError:
        return before
    return runs


def _interrupt() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _stop(board: Any, ends_at: float, is_stopping: threading.Event) -> float:
    """Tell the board once that all is to stop, and interrupt the main thread when time is up.

    Returns when that is, infinite before.
    """
    if not is_stopping.is_set():
        return ends_at
    now = time.monotonic()
    if ends_at == math.inf:
        board.stop.remote()
        _logger.warning("stopping by SIGTERM once the workers have written a checkpoint")
        return now + LEAVE_S
    if now > ends_at:
        _interrupt()
        return now + LEAVE_S
    return ends_at


def _num_steps(runs: list[RunProgress], num_runs: int) -> int:
    """Steps of all runs; assumes that a run without a report has as many as the first."""
    num_waiting = num_runs - len(runs)
    return sum(run.num_steps for run in runs) + num_waiting * runs[0].num_steps


def _notes(runs: list[RunProgress], num_runs: int) -> list[str]:
    """What follows the bar: scores and newest figures of one run, or the epochs of several.

    The most important first, as a narrow terminal shows only these; scores are of the last finished
    epoch.
    """
    if num_runs > 1:
        return [
            f"{run_name(run.run)} "
            + ("trained" if run.step == run.num_steps else f"epoch {run.epoch}")
            for run in runs
        ]
    run = runs[0]
    notes = []
    if run.last_epoch and run.last_epoch.mAP is not None:
        notes.append(f"mAP {run.last_epoch.mAP:.3f}")
    if run.last_point and run.last_point.loss is not None:
        notes.append(f"loss {run.last_point.loss:.3f}")
    notes.append(f"epoch {run.epoch}")
    if run.last_epoch and run.last_epoch.accuracy is not None:
        notes.append(f"accuracy {run.last_epoch.accuracy:.3f}")
    notes.append(f"lr {run.lr:.1e}")
    values = asdict(run.last_point) if run.last_point else {}
    values["num_bad_steps"] = run.num_bad_steps
    return notes + [show(values[name]) for name, show in _FIGURES.items() if values.get(name)]
