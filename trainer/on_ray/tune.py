"""Several runs in parallel on Ray Tune; each trial is a Ray Train run.

A trial only starts and follows its run; the run's workers take the resources. As many trials run at
once as the cluster has room for their workers, or as the user allows; the one with the fewest steps
left starts first. Each run has its own folder, so the same command resumes interrupted runs and
skips finished ones.
"""

import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import TrialScheduler

from pipeline.dataset.prepared import open_dataset
from pipeline.errors import UserError
from pipeline.on_ray import process
from pipeline.on_ray.head_node import HEAD_NODE
from pipeline.on_ray.shared_files import check_shared
from pipeline.terminal import log
from trainer.on_ray.environment import environment
from trainer.on_ray.memory import model_bytes_of
from trainer.on_ray.progress import progress_board
from trainer.on_ray.settings import Workers
from trainer.on_ray.train import fit_training, ray_folder, shared_paths
from trainer.on_ray.workers import fit_workers, note_workers
from trainer.recipe.parse import make_recipe
from trainer.recipe.recipe import Recipe
from trainer.run.checks import check_training
from trainer.run.history import check_learned
from trainer.run.remaining import remaining_steps
from trainer.run.run_folder import run_name

_logger = logging.getLogger(__name__)

_TUNE_VARIABLES = {
    # Otherwise `fit` returns after Ctrl-C as if all runs were finished.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # The run folders hold what its own logs of each trial would.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}


RunRecipes = Callable[..., dict[str, Exception]]
"""Trains recipes, given by their run folders, with the arguments of `run_recipes`."""


def train_unfinished(
    recipes: Mapping[str, Recipe],
    dataset_path: str,
    workers: Workers,
    *,
    session: AbstractContextManager[None],
    at_once: int | None = None,
    on_finished: Callable[[str], None] = lambda run_path: None,
    run: RunRecipes | None = None,
) -> dict[str, Exception]:
    """Train the recipes, given by their run folders, whose runs are not finished.

    Args:
        recipes: by their run folders.
        dataset_path: the data set of all runs.
        workers: of each run.
        session: a Ray session, entered only if a run needs training.
        at_once: the most runs to train at a time; None: as many as fit.
        on_finished: called with the folder of each run once it is trained.
        run: what trains them in the session; None: `run_recipes`.

    Returns:
        The error of each run that failed or learned nothing, by its folder.

    Raises:
        UserError: as `check_training`; or the cluster has no room for even one run.
    """
    failures: dict[str, Exception] = {}
    if waiting := unfinished(recipes, dataset_path):
        with session:
            failures |= (run or run_recipes)(
                waiting, dataset_path, workers, at_once=at_once, on_finished=on_finished
            )
    for run_path in recipes:
        try:
            check_learned(run_path)
        except UserError as error:
            failures.setdefault(run_path, error)
    return failures


def unfinished(recipes: Mapping[str, Recipe], dataset_path: str) -> dict[str, Recipe]:
    """The recipes, by their run folders, whose runs are not finished; those with the fewest steps
    left first.

    Logs each warning about their settings once, with the runs it is about.

    Raises:
        UserError: as `check_training`.
    """
    waiting: dict[str, Recipe] = {}
    runs_warned: dict[str, list[str]] = {}
    for run_path, recipe in recipes.items():
        name = run_name(run_path)
        try:
            is_finished, warnings = check_training(recipe, dataset_path, run_path)
        except UserError as error:
            raise error.prefixed(run_path) from error
        if not is_finished:
            waiting[run_path] = recipe
        for warning in warnings:
            runs_warned.setdefault(warning, []).append(name)
    for warning, names in runs_warned.items():
        prefix = "" if len(names) == len(waiting) else f"{', '.join(names)}: "
        _logger.warning("%s%s", prefix, warning)
    dataset = open_dataset(dataset_path)
    steps = {path: remaining_steps(recipe, dataset, path) for path, recipe in waiting.items()}
    return {path: waiting[path] for path in sorted(waiting, key=steps.__getitem__)}


def run_recipes(
    recipes: Mapping[str, Recipe],
    dataset_path: str,
    workers: Workers,
    *,
    at_once: int | None = None,
    on_finished: Callable[[str], None] = lambda run_path: None,
) -> dict[str, Exception]:
    """Train recipes, given by their run folders, on a connected Ray, in their order.

    Args:
        recipes: by their run folders.
        dataset_path: the data set of all runs.
        workers: of each run.
        at_once: the most runs to train at a time; None: as many as fit.
        on_finished: called with the folder of each run once it is trained.

    Returns:
        The error of each run that failed, by its folder, once the others are finished.

    Raises:
        UserError: the cluster has no room for even one run.
    """
    with trial_constants(recipes, dataset_path, workers, at_once) as (constants, num_at_once):
        trial = tune.with_parameters(_trial, constants=constants)
        return fit_trials(
            trial,
            list(recipes),
            num_at_once,
            on_finished=on_finished,
            board=constants["board"],
        )


@contextmanager
def trial_constants(
    recipes: Mapping[str, Recipe], dataset_path: str, workers: Workers, at_once: int | None
) -> Iterator[tuple[dict[str, Any], int]]:
    """What the trials of these runs are given, and how many of them run at a time.

    A progress bar shows the steps of all runs in the meantime.

    Raises:
        UserError: the cluster has no room for even one run, or a node does not see the files.
    """
    needed = model_bytes_of(recipes.values(), dataset_path, workers)
    workers, num_at_once = fit_workers(workers, runs=len(recipes), model_bytes=needed)
    check_shared(shared_paths(dataset_path, *recipes))
    note_workers(list(recipes.values()), workers)
    with progress_board(len(recipes)) as board:
        constants = {
            "recipes": {path: (recipe.name, recipe.to_json()) for path, recipe in recipes.items()},
            "dataset": dataset_path,
            "workers": workers,
            "board": board,
            "log_level": log.level(),
        }
        yield constants, min(num_at_once, at_once or num_at_once)


def fit_trials(
    trial: Any,
    run_paths: Sequence[str],
    num_at_once: int,
    *,
    on_finished: Callable[[str], None],
    board: Any = None,
    scheduler: TrialScheduler | None = None,
) -> dict[str, Exception]:
    """Have Ray Tune run a trainable for each run folder, which is `config["run"]`.

    Args:
        trial: the trainable.
        run_paths: folders, in the order in which the runs start.
        num_at_once: how many run at a time.
        on_finished: called with the folder of each run that ended well.
        board: of the runs' progress, which knows whether they are told to stop.
        scheduler: what may stop runs early; None: nothing.

    Returns:
        The error of each run that failed, by its folder.
    """
    # Tune logs each error with its traceback; the exception below is enough.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with ray_folder() as folder:
        tuner = tune.Tuner(
            # Almost nothing, on the head node: Ray Train asks for the workers' resources.
            tune.with_resources(trial, {HEAD_NODE: 0.001}),
            param_space={"run": tune.grid_search(list(run_paths))},
            tune_config=tune.TuneConfig(max_concurrent_trials=num_at_once, scheduler=scheduler),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=folder,
                verbose=0,
                # The run folders hold them.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[_Ends(on_finished, board)] if len(run_paths) > 1 else [],
            ),
        )
        # Tune prints the experiment and its trials whatever `verbose` says.
        with environment(_TUNE_VARIABLES), redirect_stdout(io.StringIO()):
            results = tuner.fit()
    # Trials are in the order of the grid.
    ended = zip(run_paths, results, strict=True)  # type: ignore[call-overload]
    return {run_path: result.error for run_path, result in ended if result.error is not None}


class _Ends(tune.Callback):
    """Follows, in this process, the ends of trials."""

    def __init__(self, on_finished: Callable[[str], None], board: Any) -> None:
        self._on_finished = on_finished
        self._board = board

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Called for a trial that ended well."""
        self._on_finished(trial.config["run"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Called for a trial that failed for good; the end of the command says why."""
        if self._board is not None and ray.get(self._board.is_stopping.remote()):
            return
        _logger.warning("%s failed; the other runs go on", run_name(trial.config["run"]))


def _trial(config: dict[str, Any], constants: dict[str, Any]) -> None:
    process.set_up(constants["log_level"])
    name, settings = constants["recipes"][config["run"]]
    fit_training(
        make_recipe(name, settings, where="recipe"),
        constants["dataset"],
        config["run"],
        constants["workers"],
        constants["board"],
    )
