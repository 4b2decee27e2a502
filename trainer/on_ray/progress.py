"""The progress of runs in other processes: a board that workers report to, and a progress bar."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import ray

from pipeline.terminal.progress import ProgressBar
from trainer.on_ray.actors import Board
from trainer.run.run_folder import run_name
from trainer.run.run_progress import RunProgress

_logger = logging.getLogger(__name__)

REPORT_EVERY_S = 0.5
"""Shortest time between two reports of a run, and between two updates of the bar."""
_SAY_WAITING_AFTER_S = 60.0
_FIGURES: dict[str, Callable[[float], str]] = {
    "num_bad_steps": lambda value: f"{value} steps skipped",
    "clips_per_s": lambda value: f"{value:.0f} clips/s",
    "data_wait_share": lambda value: f"{value:.0%} waiting for data",
    "peak_memory_bytes": lambda value: f"{value / 1e9:.1f} GB",
    "mfu": lambda value: f"{value:.0%} of peak FLOPs",
    "grad_norm": lambda value: f"gradient {value:.2g}",
}
"""Parts of the progress line; unknown figures and zeros are left out."""


@contextmanager
def progress_board(num_runs: int) -> Iterator[Any]:
    """A board for workers to report to; a bar shows the steps of all runs while it exists."""
    board: Any = ray.remote(num_cpus=0)(Board).remote()
    stop = threading.Event()
    thread = threading.Thread(
        target=_show_progress, args=(board, num_runs, stop), name="progress", daemon=True
    )
    thread.start()
    try:
        yield board
    finally:
        stop.set()
        thread.join(timeout=10)
        ray.kill(board)


def _show_progress(board: Any, num_runs: int, stop: threading.Event) -> None:
    """The progress thread."""
    # When the session ends during a run, the caller of the run says why.
    with suppress(ray.exceptions.RayError):
        runs: list[RunProgress] = []
        waiting_since = time.monotonic()
        while not runs:
            if stop.wait(REPORT_EVERY_S):
                return
            runs = ray.get(board.get.remote())
            if time.monotonic() - waiting_since > _SAY_WAITING_AFTER_S:
                waiting_since = time.monotonic()
                free = ray.available_resources()
                _logger.info(
                    "still waiting for the first step: the workers are starting, or the cluster is "
                    "busy (%g CPUs, %g GPUs free)",
                    *(free.get("CPU", 0), free.get("GPU", 0)),
                )
        with ProgressBar("steps", _num_steps(runs, num_runs)) as bar:
            is_over = False
            while not is_over:
                is_over = stop.wait(REPORT_EVERY_S)
                runs = ray.get(board.get.remote())
                bar.set_total(_num_steps(runs, num_runs))
                bar.update(sum(run.step for run in runs), _notes(runs, num_runs))


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
