"""Where the workers of Ray Train start: what they run is loaded in them, not in the driver."""

import traceback
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.on_ray import process
from pipeline.on_ray.shared_files import check_here


def train_worker(config: dict[str, Any]) -> None:
    """See `trainer.on_ray.worker_run.train_run`."""
    from trainer.on_ray.worker_run import train_run

    train_run(config)


def evaluate_worker(config: dict[str, Any]) -> None:
    """See `trainer.on_ray.worker_run.evaluate_runs`."""
    from trainer.on_ray.worker_run import evaluate_runs

    evaluate_runs(config)


def traced(
    worker: Callable[[dict[str, Any]], None],
    paths: Sequence[str],
    log_level: int,
    config: dict[str, Any],
) -> None:
    """Run a worker; add the traceback to an error, as processes do not hand it on."""
    process.set_up(log_level)
    try:
        check_here(paths)
        worker(config)
    except Exception as error:
        error.add_note(traceback.format_exc())
        raise
