"""Trains the unfinished runs of `ensemble` and `cross-validate`."""

import argparse
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from cluster.commands.session_options import session
from cluster.program import print_error
from pipeline.commands.step import positive
from pipeline.errors import UserError, last_line
from trainer.commands.options import workers
from trainer.on_ray.settings import Workers
from trainer.recipe.recipe import Recipe
from trainer.studies.shared import NotScored

if TYPE_CHECKING:  # it loads Ray
    from trainer.on_ray.tune import RunRecipes

_logger = logging.getLogger(__name__)


def add_several_options(parser: argparse.ArgumentParser) -> None:
    """Options of steps that train several runs at a time."""
    parser.add_argument(
        "--at-once", type=positive, help="the most runs to train at a time (default: all that fit)"
    )
    parser.add_argument(
        "--gpus-per-worker",
        type=share_of_gpu,
        metavar="SHARE",
        help="share of a GPU for each run, such as 0.5 to train two small models on one GPU; only "
        "with one worker a run (default: 1)",
    )


def share_of_gpu(text: str) -> float:
    """A number above 0, and at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text!r}")
    return value


def workers_of_each(arguments: argparse.Namespace) -> Workers:
    """The workers of each run.

    Raises:
        UserError: several workers of a run would share a GPU, or none is to be used.
    """
    of_each, share = workers(arguments), arguments.gpus_per_worker
    if share is None:
        return of_each
    if of_each.use_gpu is False:
        raise UserError("--gpus-per-worker", "gives a share of a GPU, and --no-gpu none")
    if of_each.num > 1 and share < 1:
        raise UserError(
            "--gpus-per-worker",
            f"{share:g} would put several of a run's {of_each.num} workers on one GPU, which NCCL "
            "refuses",
            "give --workers 1, or a whole GPU to each worker",
        )
    return replace(of_each, use_gpu=True, gpus=share)


def train_scored(
    recipes: dict[str, Recipe],
    arguments: argparse.Namespace,
    scored: Collection[str],
    on_finished: Callable[[str], None] = lambda run_path: None,
) -> NotScored:
    """Train the runs, any of which may fail: prints the error of each that did.

    If none of the runs to score is left, raises the last error.

    Args:
        recipes: of the runs to train, by their folders.
        arguments: of the command.
        scored: folders of all runs to score.
        on_finished: called with the folder of each run once it is trained.
    """
    errors = train_runs(recipes, arguments, on_finished)
    if not set(scored) - errors.keys():
        raise_last(list(errors.values()))
    diverged = _diverged(errors)
    failed = {run: error for run, error in errors.items() if run not in diverged}
    for error in failed.values():
        print_error(error)
    _warn_of(diverged)
    return NotScored(
        diverged=list(diverged), failed={run: _reason(error) for run, error in failed.items()}
    )


def train_runs(
    recipes: dict[str, Recipe],
    arguments: argparse.Namespace,
    on_finished: Callable[[str], None] = lambda run_path: None,
    run: "RunRecipes | None" = None,
) -> dict[str, Exception]:
    """Train the runs; returns the error of each that failed, by its folder.

    Args:
        recipes: of the runs to train, by their folders.
        arguments: of the command.
        on_finished: called with the folder of each run once it is trained.
        run: what trains them; None: `trainer.on_ray.tune.run_recipes`.
    """
    of_each = workers_of_each(arguments)

    from cluster.worker_errors import unwrap_each
    from pipeline.dataset.prepared import note_unchecked, open_dataset
    from pipeline.dataset.source_rates import note_low_rates
    from trainer.on_ray.tune import train_unfinished

    dataset = open_dataset(arguments.data)  # refused once, not for each run
    note_unchecked(dataset)
    note_low_rates(dataset)
    failures = train_unfinished(
        recipes,
        arguments.data,
        of_each,
        session=session(arguments),
        at_once=arguments.at_once,
        on_finished=on_finished,
        run=run,
    )
    return dict(zip(failures, unwrap_each(failures), strict=True))


def _diverged(errors: dict[str, Exception]) -> dict[str, Exception]:
    from trainer.run.skipped_steps import DivergedError

    return {run: error for run, error in errors.items() if isinstance(error, DivergedError)}


def _warn_of(diverged: dict[str, Exception]) -> None:
    for error in diverged.values():
        _logger.warning("not scored, as it diverged: %s", error)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else last_line(error)


def raise_last(errors: Sequence[Exception]) -> NoReturn:
    """Raise the last error, and print those before it."""
    for error in errors[:-1]:
        print_error(error)
    raise errors[-1]
