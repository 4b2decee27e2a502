"""Trains the unfinished runs of `ensemble` and `cross-validate`."""

import argparse

from cluster.commands.session_options import session
from cluster.program import print_error
from trainer.commands.options import workers
from trainer.recipe.recipe import Recipe


def train_all(recipes: dict[str, Recipe], arguments: argparse.Namespace) -> None:
    """Train the runs; print the error of each run that fails, but raise the last."""
    from cluster.worker_errors import unwrap_each
    from pipeline.dataset.prepared import note_unchecked, open_dataset
    from trainer.on_ray.tune import train_unfinished

    note_unchecked(open_dataset(arguments.data))  # refused once, not for each run
    failures = train_unfinished(
        recipes, arguments.data, workers(arguments), session=session(arguments)
    )
    errors = unwrap_each(failures)
    for error in errors[:-1]:
        print_error(error)
    if errors:
        raise errors[-1]
