"""Training and evaluation on Ray Train: the loop in every worker, its progress on the driver.

Ray Train starts the workers, joins them in a process group (gloo on CPUs, NCCL on GPUs) and
restarts them when one is lost. The loop writes its checkpoints into the run folder; a restart,
whether after a lost worker or by the same command, resumes from the newest one.
"""

import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import ray
import ray.train

from pipeline.dataset.prepared import card_path
from pipeline.on_ray.shared_files import SharedPaths, check_shared, seen_here
from pipeline.terminal import log
from trainer.checkpoints.settings import Weights
from trainer.model.settings import Precision
from trainer.on_ray.actors import Failures
from trainer.on_ray.environment import environment
from trainer.on_ray.progress import progress_board
from trainer.on_ray.settings import Workers
from trainer.on_ray.trainer import Trainer, how_to_join
from trainer.on_ray.worker_start import evaluate_worker, traced, train_worker
from trainer.on_ray.workers import fit_workers, fixed_workers, note_precision, note_workers
from trainer.optim.settings import ScoreFunction
from trainer.recipe.recipe import Recipe
from trainer.run.leaving import StoppedError
from trainer.run.run_folder import read_recipe, read_run
from trainer.run.writer import alone_in

_VARIABLES = {
    # Twice as often as by default is enough for a notice of 30 s, as clouds give it.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2",
    # The time to wait for room, in place of 60 s: a lost node has room until it is taken for dead.
    # After it, the room is counted anew, and asked for again.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
}
"""Variables that Ray Train reads, unless the user has set them."""
_RESIZE_EVERY_S = 20.0
"""How often an elastic run looks for room for more workers."""


def run_training(recipe: Recipe, dataset_path: str, run_path: str, workers: Workers) -> None:
    """Train or resume a run on a connected Ray; shows a progress bar.

    Raises:
        UserError: see `check_training` and `trainer.training.loop.train`; one of a worker is
            wrapped in Ray's own errors.
    """
    workers, _ = fit_workers(workers)
    check_shared(shared_paths(dataset_path, run_path))
    note_workers([recipe], workers)
    # There is no wait for the board, whose process starts beside that of the controller.
    with progress_board(1) as board, alone_in(run_path):
        config = _config(recipe, dataset_path, run_path, workers, board)
        check = partial(_check_memory, recipe, dataset_path, workers)
        _fit(train_worker, config, run_path, workers, board, check=check)


def _check_memory(recipe: Recipe, dataset_path: str, workers: Workers) -> None:
    """Check that there is memory for the model of a run, as `fit_workers` does."""
    # It loads PyTorch and timm, while the controller starts.
    from trainer.on_ray.memory import model_bytes_of

    fit_workers(workers, model_bytes=model_bytes_of([recipe], dataset_path, workers))


def shared_paths(dataset_path: str, *run_paths: str) -> SharedPaths:
    """What every node with a worker must see."""
    return SharedPaths(read=(card_path(dataset_path),), written=run_paths)


def fit_training(
    recipe: Recipe,
    dataset_path: str,
    run_path: str,
    workers: Workers,
    board: Any,
    referee: Any = None,
) -> None:
    """Train or resume one of several runs with Ray Train; its progress goes to their board.

    With a `Referee`, the run asks it after each epoch whether to go on.
    """
    with alone_in(run_path):
        if ray.get(board.is_stopping.remote()):
            raise StoppedError(run_path, "stopped before its start")
        config = _config(recipe, dataset_path, run_path, workers, board, referee)
        _fit(train_worker, config, run_path, workers, board)


def _config(
    recipe: Recipe,
    dataset_path: str,
    run_path: str,
    workers: Workers,
    board: Any,
    referee: Any = None,
) -> dict[str, Any]:
    """What a worker of a training is given."""
    return {
        "recipe": (recipe.name, recipe.to_json()),
        "dataset": dataset_path,
        "run": run_path,
        "threads": workers.cpus,
        "board": board,
        "referee": referee,
    }


def run_evaluation(
    run_path: str,
    dataset_path: str,
    split: str,
    fold: int,
    workers: Workers,
    weights: Weights = "last",
    *,
    precision: Precision | None = None,
    scores: ScoreFunction | None = None,
) -> None:
    """Score a split with weights of a run and write the predictions into the run.

    Args:
        weights: which of the run's weights.
        precision: what the model computes in; None: as in training.
        scores: what makes scores of its outputs; None: as in training.
    """
    run_evaluations(
        [(run_path, weights)],
        dataset_path,
        split,
        fold,
        workers,
        precision=precision,
        scores=scores,
    )


def run_evaluations(
    runs: Sequence[tuple[str, Weights]],
    dataset_path: str,
    split: str,
    fold: int,
    workers: Workers,
    *,
    precision: Precision | None = None,
    scores: ScoreFunction | None = None,
) -> None:
    """As `run_evaluation` for each of several run folders and weights, by the same workers."""
    workers = fixed_workers(fit_workers(workers)[0])
    check_shared(shared_paths(dataset_path, *dict.fromkeys(run for run, _ in runs)))
    recipes = []
    for run_path, _ in runs:
        recipe = read_recipe(run_path, read_run(run_path))
        train = recipe.train
        train = replace(
            train, precision=precision or train.precision, scores=scores or train.score_function
        )
        recipes.append(replace(recipe, train=train))
    note_precision({recipe.train.precision for recipe in recipes}, workers, "--precision")
    config = {
        "runs": [
            (run_path, weights, recipe.name, recipe.to_json())
            for (run_path, weights), recipe in zip(runs, recipes, strict=True)
        ],
        "dataset": dataset_path,
        "split": split,
        "fold": fold,
        "threads": workers.cpus,
    }
    _fit(evaluate_worker, config, runs[0][0], workers)


def _fit(
    worker: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    run_path: str,
    workers: Workers,
    board: Any = None,
    *,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Run a function in all workers.

    Args:
        worker: the function.
        config: what it is given.
        run_path: folder of the run that messages are about.
        workers: where it runs.
        board: that of a training, which may be left.
        check: raises an error if it cannot run; called before the workers start.
    """
    resources = {"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.use_gpu else {})}
    with (
        how_to_join(listens=board is not None) as backend,
        ray_folder() as folder,
        environment(_VARIABLES),
        _ctrl_c_interrupts(),
    ):
        trainer = Trainer(
            partial(
                traced, worker, seen_here(shared_paths(config["dataset"], run_path)), log.level()
            ),
            check=check,
            train_loop_config=config,
            backend_config=backend,
            scaling_config=ray.train.ScalingConfig(
                num_workers=(workers.least, workers.num) if workers.least else workers.num,
                elastic_resize_monitor_interval_s=_RESIZE_EVERY_S,
                use_gpu=bool(workers.use_gpu),
                resources_per_worker=resources,
            ),
            run_config=ray.train.RunConfig(
                name="ray",
                storage_path=folder,
                # `Failures` ends a run that makes no progress.
                failure_config=ray.train.FailureConfig(max_failures=-1),
                callbacks=[Failures(run_path, log.level(), board)],
                # Ray Train logs each start of its workers, and each error several times; the
                # exception that `fit` raises is enough. Its log files have it all.
                logging_config=ray.train.LoggingConfig(log_level="CRITICAL"),
            ),
        )
        trainer.fit()


@contextmanager
def _ctrl_c_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C: Ray Train's handler exits as if the run were finished."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


@contextmanager
def ray_folder() -> Iterator[str]:
    """A temporary folder for the few files of Ray Train and Ray Tune, which nothing resumes from.

    So a storage that fails for a while, or a run that cannot be written, does not concern Ray.
    """
    with tempfile.TemporaryDirectory(prefix="ast-ray-", ignore_cleanup_errors=True) as folder:
        yield folder
