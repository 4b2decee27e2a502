"""Several runs side by side on Ray Tune, each trial a Ray Train run of its own.

A trial only starts and follows its run, whose workers take the resources; so many trials run at a
time as their workers fit into the cluster. Each run has its folder, named after what sets it apart:
the same command again carries on the runs that were interrupted and leaves the finished ones alone.
"""

import io
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from typing import Any

from ray import tune

from pipeline.errors import UserError
from pipeline.terminal import log
from trainer.on_ray.head_node import HEAD_NODE
from trainer.on_ray.progress import progress_board
from trainer.on_ray.settings import Workers
from trainer.on_ray.train import fit_training, ray_storage
from trainer.on_ray.workers import fit_workers, note_workers
from trainer.recipe.parse import make_recipe
from trainer.recipe.recipe import Recipe
from trainer.run.checks import check_training
from trainer.run.history import check_learned

_logger = logging.getLogger(__name__)

_TUNE_VARIABLES = {
    # Otherwise `fit` returns after Ctrl-C as if all were done.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # What its own logs of each trial would hold is in the run folders.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}


def train_unfinished(
    recipes: Mapping[str, Recipe],
    dataset_path: str,
    output: str,
    workers: Workers,
    *,
    session: AbstractContextManager[None],
) -> dict[str, Exception]:
    """Train those of the recipes, by their run folders, whose runs are not finished yet.

    Args:
        output: where Ray Tune keeps its own few files.
        session: a Ray session, which is entered only if there is something to train.

    Returns:
        What ended each run that failed, by its folder, and why one that is through is of no use.

    Raises:
        UserError: as `check_training`; not even one run fits into the cluster.
    """
    failures: dict[str, Exception] = {}
    if waiting := unfinished(recipes, dataset_path):
        with session:
            failures |= run_recipes(waiting, dataset_path, output, workers)
    for run_path in recipes:
        try:
            check_learned(run_path)
        except UserError as error:
            failures.setdefault(run_path, error)
    return failures


def unfinished(recipes: Mapping[str, Recipe], dataset_path: str) -> dict[str, Recipe]:
    """Those of the recipes, by their run folders, whose runs are not finished yet.

    What is odd about their settings goes to standard error, each once, with the runs it is said of.

    Raises:
        UserError: as `check_training`.
    """
    waiting: dict[str, Recipe] = {}
    told: dict[str, list[str]] = {}
    for run_path, recipe in recipes.items():
        name = run_path.rpartition("/")[2]
        try:
            is_finished, warnings = check_training(recipe, dataset_path, run_path)
        except UserError as error:
            raise error.prefixed(run_path) from error
        if not is_finished:
            waiting[run_path] = recipe
        for warning in warnings:
            told.setdefault(warning, []).append(name)
    for warning, names in told.items():
        whose = "" if len(names) == len(waiting) else f"{', '.join(names)}: "
        _logger.warning("%s%s", whose, warning)
    return waiting


def run_recipes(
    recipes: Mapping[str, Recipe], dataset_path: str, output: str, workers: Workers
) -> dict[str, Exception]:
    """Train recipes, given by their run folders, on a connected Ray, as many at a time as fit.

    Args:
        output: where Ray Tune keeps its own few files.

    Returns:
        What ended each run that failed, by its folder, once the others are through.

    Raises:
        UserError: not even one run fits into the cluster.
    """
    workers, num_at_once = fit_workers(workers, runs=len(recipes))
    note_workers(list(recipes.values()), workers)
    # Tune logs each error with its traceback; once by the exception below is enough.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    path, file_system = ray_storage(output)
    with progress_board(len(recipes)) as board:
        constants = {
            "recipes": {path: (one.name, one.to_json()) for path, one in recipes.items()},
            "dataset": dataset_path,
            "workers": workers,
            "board": board,
            "log_level": log.level(),
        }
        trial = tune.with_resources(
            tune.with_parameters(_trial, constants=constants),
            # Next to nothing, and on the head: the workers' resources are Ray Train's to ask for.
            {HEAD_NODE: 0.001},
        )
        tuner = tune.Tuner(
            trial,
            param_space={"run": tune.grid_search(list(recipes))},
            tune_config=tune.TuneConfig(max_concurrent_trials=num_at_once),
            run_config=tune.RunConfig(
                name="tune", storage_path=path, storage_filesystem=file_system, verbose=0
            ),
        )
        # It announces the experiment and its trials on standard output whatever `verbose` says.
        with _environment(_TUNE_VARIABLES), redirect_stdout(io.StringIO()):
            results = tuner.fit()
    # Trials are in the order of the grid.
    ended = zip(recipes, results, strict=True)  # type: ignore[call-overload]
    return {run_path: one.error for run_path, one in ended if one.error is not None}


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables that Ray Tune reads, where the user has not, and take them back."""
    added = variables.keys() - os.environ.keys()
    os.environ.update({name: variables[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _trial(config: dict[str, Any], constants: dict[str, Any]) -> None:
    log.set_up(constants["log_level"], is_worker=True)
    name, settings = constants["recipes"][config["run"]]
    fit_training(
        make_recipe(name, settings, where="recipe"),
        constants["dataset"],
        config["run"],
        constants["workers"],
        constants["board"],
    )
