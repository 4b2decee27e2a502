"""Trains the unfinished runs of `ensemble` and `cross-validate`."""

import argparse
import logging
from collections.abc import Collection, Sequence

from cluster.commands.session_options import session
from cluster.program import print_error
from trainer.commands.options import workers
from trainer.recipe.recipe import Recipe

_logger = logging.getLogger(__name__)


def train_all(
    recipes: dict[str, Recipe], arguments: argparse.Namespace, scored: Collection[str]
) -> list[str]:
    """Train the runs; returns those that diverged, with a warning of each.

    If others fail, or if none of the runs to score is left, prints the error of each run that
    failed, but raises the last.

    Args:
        recipes: of the runs to train, by their folders.
        arguments: of the command.
        scored: folders of all runs to score.
    """
    from cluster.worker_errors import unwrap_each
    from pipeline.dataset.prepared import note_unchecked, open_dataset
    from pipeline.dataset.source_rates import note_low_rates
    from trainer.on_ray.tune import train_unfinished
    from trainer.run.skipped_steps import DivergedError

    dataset = open_dataset(arguments.data)  # refused once, not for each run
    note_unchecked(dataset)
    note_low_rates(dataset)
    failures = train_unfinished(
        recipes, arguments.data, workers(arguments), session=session(arguments)
    )
    errors = unwrap_each(failures)
    is_left = set(scored) - failures.keys()
    if errors and not (is_left and all(isinstance(error, DivergedError) for error in errors)):
        _raise(errors)
    for error in errors:
        _logger.warning("not scored, as it diverged: %s", error)
    return list(failures)


def _raise(errors: Sequence[Exception]) -> None:
    for error in errors[:-1]:
        print_error(error)
    raise errors[-1]
