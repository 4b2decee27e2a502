"""Training and evaluation on Ray Train: the loop in every worker, its progress on the driver.

Ray Train starts the workers, joins them in a process group (gloo on CPUs, NCCL on GPUs) and starts
them anew when one is lost. Checkpoints are the loop's own, in the run folder, so that a new start,
after a lost worker or by the same command, carries on from the newest one.
"""

import logging
import math
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow.fs
import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer

from pipeline import storage
from pipeline.dataset import PreparedDataset, open_dataset
from pipeline.errors import UserError
from pipeline.progress import ProgressBar
from trainer.averaging import State, check_weights, weights_path
from trainer.checkpoint import Progress, checkpoint_paths, load_newest
from trainer.clips import ClipSet, select_clips, select_training_data
from trainer.evaluation import evaluate
from trainer.loader import Loader
from trainer.loop import make_model, train, weights_facts
from trainer.precision import Precision
from trainer.predictions import (
    from_scores,
    metrics_path,
    predictions_name,
    predictions_path,
    write_predictions,
)
from trainer.ray_actors import Board, Failures
from trainer.recipe import Recipe, check_fit, make_recipe
from trainer.remarks import check_rate, remarks
from trainer.run_folder import (
    alone_in,
    check_same_run,
    is_finished,
    read_history,
    read_recipe,
    read_run,
)
from trainer.weights import read_state
from trainer.world import World

_REPORT_EVERY_S = 0.5
_SAY_WAITING_AFTER_S = 60.0
_FIGURES: dict[str, Callable[[float], str]] = {
    "clips_per_s": lambda value: f"{value:.0f} clips/s",
    "data_wait_share": lambda value: f"{value:.0%} waiting for data",
    "peak_memory_bytes": lambda value: f"{value / 1e9:.1f} GB",
    "mfu": lambda value: f"{value:.0%} of peak FLOPs",
    "grad_norm": lambda value: f"gradient {value:.2g}",
    "num_bad_steps": lambda value: f"{value} steps skipped",
}
"""Words of the progress line; what is not known, or 0, is left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """The processes of a run."""

    num: int = 1
    """How many."""
    cpus: int = 1
    """CPUs of each, and threads of torch where there is no GPU."""
    use_gpu: bool | None = None
    """Whether each has a GPU; None: if the cluster has any."""


def run_training(recipe: Recipe, dataset_path: str, run_path: str, workers: Workers) -> None:
    """Train, or carry on, on a connected Ray; shows a progress bar.

    Raises:
        UserError: see `check_training` and `trainer.loop.train`; Ray's own errors wrap it where it
            comes from a worker.
    """
    workers, _ = fit_workers(workers)
    note_workers([recipe], workers)
    with progress_board(1) as board:
        fit_training(recipe, dataset_path, run_path, workers, board)


def check_training(recipe: Recipe, dataset_path: str, run_path: str) -> tuple[bool, list[str]]:
    """Find out before Ray starts whether a run can be.

    Returns:
        Whether it is finished already, and else what is odd about its settings.

    Raises:
        UserError: no such data set, split, fold or weights; settings that cannot be, or that learn
            nothing; the folder holds something else or cannot be written to.
    """
    dataset = open_dataset(dataset_path)
    data = select_training_data(dataset, recipe.data)
    check_fit(recipe, data)
    is_begun = check_same_run(run_path, recipe, dataset)
    if is_begun and is_finished(run_path):
        path = predictions_path(run_path, data.evaluation.name)
        if all(map(storage.exists, (path, metrics_path(run_path, data.evaluation.name)))):
            return True, []
        if "imported_from" in read_run(run_path):
            raise UserError(
                f"{run_path}: an imported model, which has no training to carry on; `evaluate` "
                f"makes its predictions, and `train` with another --out and "
                f"--set model.weights_file={run_path} trains on from it"
            )
        print(f"{path}: its predictions are gone, and are made again", file=sys.stderr)
    check_rate(recipe, data)
    weights = recipe.model.weights_file
    if weights and not (is_begun or storage.exists(weights) or storage.list_files(weights)):
        raise UserError(f"model.weights_file: {weights} is not there")
    storage.make_folder(run_path)
    return False, remarks(recipe, data)


def fit_training(
    recipe: Recipe, dataset_path: str, run_path: str, workers: Workers, board: Any
) -> None:
    """One Ray Train run, from the newest checkpoint on; its progress goes to the board."""
    config = {
        "recipe": (recipe.name, recipe.to_json()),
        "dataset": dataset_path,
        "run": run_path,
        "threads": workers.cpus,
        "board": board,
    }
    with alone_in(run_path):
        _fit(_train_worker, config, run_path, workers)


def check_evaluation(
    run_path: str, dataset_path: str, split: str, fold: int, weights: str = "last"
) -> str:
    """Find out before Ray starts whether a run can be evaluated; the name of the predictions.

    Raises:
        UserError: no such run, data set, split or fold; another vocabulary; no checkpoint yet, or
            not these weights.
    """
    run, dataset = read_run(run_path), open_dataset(dataset_path)
    if dataset.labels != run["data"]["labels"]:
        raise UserError(
            f"{dataset_path}: has {len(dataset.labels)} classes that are not, or not in the order "
            f"of, the {len(run['data']['labels'])} classes of the run {run_path}"
        )
    if weights != "last":
        check_weights(run_path, weights)
    elif not checkpoint_paths(run_path):
        raise UserError(f"{run_path}: the run has no checkpoint yet")
    return _evaluation_name(run, dataset, select_clips(dataset, split, fold), weights)


def _evaluation_name(
    run: dict[str, Any], dataset: PreparedDataset, clips: ClipSet, weights: str
) -> str:
    """What the predictions are called: other data must not take the place of the run's own."""
    if clips.data_fingerprint == run["data"]["fingerprint"]:
        return predictions_name(clips.name, weights)
    other = f"{dataset.path.rpartition('/')[2]}-{clips.data_fingerprint[:8]}"
    return predictions_name(f"{clips.name}-of-{other}", weights)


def run_evaluation(
    run_path: str,
    dataset_path: str,
    split: str,
    fold: int,
    workers: Workers,
    weights: str = "last",
    precision: Precision | None = None,
) -> None:
    """Score a split with weights of a run and write the predictions into the run.

    Args:
        weights: `last`, those of the newest checkpoint; `averaged`, `ema` or `best`.
        precision: what the model computes in; None: what it was trained in.
    """
    workers, _ = fit_workers(workers)
    recipe = read_recipe(read_run(run_path))
    if precision is not None:
        recipe = replace(recipe, train=replace(recipe.train, precision=precision))
    _note_precision({recipe.train.precision}, workers, "--precision")
    config = {
        "recipe": (recipe.name, recipe.to_json()),
        "run": run_path,
        "dataset": dataset_path,
        "split": split,
        "fold": fold,
        "weights": weights,
        "threads": workers.cpus,
    }
    _fit(_evaluate_worker, config, run_path, workers)


def fit_workers(workers: Workers, *, runs: int = 1) -> tuple[Workers, int]:
    """Decide on GPUs, and how many of `runs` runs fit into the connected cluster side by side.

    Raises:
        UserError: not even one does; Ray would wait for ever.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (int(sum(node.get(name, 0) for node in nodes)) for name in ("CPU", "GPU"))
    if workers.use_gpu is None:
        workers = replace(workers, use_gpu=gpus > 0)
    # A worker is on one node, so what is left over on several nodes makes no place for another.
    places = [
        min(
            node.get("CPU", 0) // workers.cpus,
            node.get("GPU", 0) if workers.use_gpu else math.inf,
        )
        for node in nodes
    ]
    fits = int(sum(places)) // workers.num
    if fits < 1:
        kind = "a GPU" if workers.use_gpu else "no GPU"
        raise UserError(
            f"{workers.num} workers with {workers.cpus} CPUs and {kind} each do not fit into this "
            f"cluster of {len(nodes)} nodes, {cpus} CPUs and {gpus} GPUs; lower --workers or "
            f"--cpus-per-worker"
        )
    return workers, min(fits, runs)


def note_workers(recipes: Collection[Recipe], workers: Workers) -> None:
    """Tell of what does not suit the workers: half precision on CPUs, which recipes for GPUs have.

    And of one worker that has nobody to share a model with, or several whose shares of a batch are
    small anyway.
    """
    for size, micro in sorted({(x.train.batch_size, x.train.micro_batch_size) for x in recipes}):
        share = math.ceil(size / workers.num)
        if share <= micro < size:
            print(
                f"note: train.micro_batch_size: without effect, as each of {workers.num} workers "
                f"computes no more than {share} clips of a batch",
                file=sys.stderr,
            )
    if workers.num == 1 and any(one.train.sharding == "shard" for one in recipes):
        print("note: train.sharding: without effect, as there is one worker", file=sys.stderr)
    _note_precision({one.train.precision for one in recipes}, workers, "train.precision")


def _note_precision(precisions: set[Precision], workers: Workers, setting: str) -> None:
    found = sorted(precisions - {"float32"})
    if found and not workers.use_gpu:
        print(
            f"note: {setting}: {' and '.join(found)} on CPUs, many of which are far faster "
            f"with float32",
            file=sys.stderr,
        )


@contextmanager
def progress_board(num_runs: int) -> Iterator[Any]:
    """A board for workers to report to, and a bar over the steps of all runs while it exists."""
    board = ray.remote(num_cpus=0)(Board).remote()
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
    """What the progress thread does."""
    # When the session ends below the thread, those who wait for the run say why.
    with suppress(ray.exceptions.RayError):
        values: list[dict[str, Any]] = []
        waiting_since = time.monotonic()
        while not values:
            if stop.wait(_REPORT_EVERY_S):
                return
            values = ray.get(board.get.remote())
            if time.monotonic() - waiting_since > _SAY_WAITING_AFTER_S:
                waiting_since = time.monotonic()
                free = ray.available_resources()
                print(
                    f"still waiting for the first step: the workers are starting, or the cluster "
                    f"is busy ({free.get('CPU', 0):g} CPUs, {free.get('GPU', 0):g} GPUs free)",
                    file=sys.stderr,
                    flush=True,
                )
        with ProgressBar("steps", _num_steps(values, num_runs)) as bar:
            is_over = False
            while not is_over:
                is_over = stop.wait(_REPORT_EVERY_S)
                values = ray.get(board.get.remote())
                bar.set_total(_num_steps(values, num_runs))
                bar.update(sum(one["step"] for one in values), _note(values, num_runs))


def _num_steps(values: list[dict[str, Any]], num_runs: int) -> int:
    """Steps of all runs; one that has not begun is taken to have as many as the first."""
    num_waiting = num_runs - len(values)
    steps: list[int] = [one["num_steps"] for one in values]
    return sum(steps) + num_waiting * steps[0]


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """Ray Train's trainer without its `PlacementGroupCleaner`.

    That helper asks the Ray it happens to find on the machine whether the training still lives. If
    this is another than the one in use, it takes the resources from a training that does. What it
    is for, a lost controller, ends this process and with it what Ray holds for it.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [one for one in callbacks if type(one).__name__ != "PlacementGroupCleanerCallback"]


def _fit(
    worker: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    run_path: str,
    workers: Workers,
) -> None:
    resources = {"CPU": workers.cpus, **({"GPU": 1} if workers.use_gpu else {})}
    path, file_system = ray_storage(run_path)
    trainer = _Trainer(
        partial(_traced, worker),
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.num,
            use_gpu=bool(workers.use_gpu),
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=path,
            storage_filesystem=file_system,
            # `Failures` ends a run that does not get further.
            failure_config=ray.train.FailureConfig(max_failures=-1),
            callbacks=[Failures(run_path)],
            # Ray Train tells of every start of its workers, and of every error again and again:
            # once by the exception that `fit` raises is enough. Its log files have it all.
            logging_config=ray.train.LoggingConfig(log_level="CRITICAL"),
        ),
    )
    with _ctrl_c_interrupts():
        trainer.fit()


def _traced(worker: Callable[[dict[str, Any]], None], config: dict[str, Any]) -> None:
    """Run a worker; an error takes its traceback along, which is lost between processes."""
    try:
        worker(config)
    except Exception as error:
        error.add_note(traceback.format_exc())
        raise


@contextmanager
def _ctrl_c_interrupts() -> Iterator[None]:
    """Make Ctrl-C what it is elsewhere: Ray Train's handler ends the process as if it were done."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def ray_storage(run_path: str) -> tuple[str, pyarrow.fs.FileSystem | None]:
    """Where Ray Train keeps its own few files: in the run folder, through s3fs on S3."""
    if not storage.is_remote(run_path):
        return run_path, None
    handler = pyarrow.fs.FSSpecHandler(storage.file_system(run_path))
    return run_path.removeprefix("s3://"), pyarrow.fs.PyFileSystem(handler)


def _world(threads: int) -> World:
    """This worker's place, once Ray Train has set up the process group."""
    # Ray Train lets through to the terminal what any library logs at INFO, such as botocore.
    logging.getLogger().setLevel(logging.WARNING)
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(threads)
    return World(rank=context.get_world_rank(), size=context.get_world_size(), device=device)


def _train_worker(config: dict[str, Any]) -> None:
    name, settings = config["recipe"]
    board, last = config["board"], 0.0

    def report(values: dict[str, Any]) -> None:
        nonlocal last
        if time.monotonic() - last >= _REPORT_EVERY_S or values["step"] == values["num_steps"]:
            last = time.monotonic()
            board.put.remote(values)

    world = _world(config["threads"])
    train(
        make_recipe(name, settings, where="recipe"),
        open_dataset(config["dataset"]),
        config["run"],
        world=world,
        report=report,
    )


def _evaluate_worker(config: dict[str, Any]) -> None:
    world = _world(config["threads"])
    run = read_run(config["run"])
    name, settings = config["recipe"]
    recipe = make_recipe(name, settings, where="recipe")
    dataset = open_dataset(config["dataset"])
    weights = config["weights"]
    state, progress = _trained(config["run"], weights)
    model = make_model(recipe, dataset, fresh=False).to(world.device)
    model.load_state_dict(state)
    clips = select_clips(dataset, config["split"], config["fold"])
    evaluation = evaluate(
        model,
        Loader(
            clips,
            recipe.loader,
            num_frames=recipe.model.num_frames,
            bucket_frames=recipe.sampler.bucket_frames,
            device=world.device,
        ),
        mean=run["data"]["mean"],
        std=run["data"]["std"],
        settings=recipe.train,
        world=world,
        run_path=config["run"],
    )
    if world.is_first:
        facts = weights_facts(recipe, progress, weights)
        predictions = from_scores(clips, evaluation.targets, evaluation.scores, facts)
        predictions = replace(predictions, name=_evaluation_name(run, dataset, clips, weights))
        write_predictions(config["run"], predictions, evaluation.metrics)


def _trained(run_path: str, weights: str) -> tuple[State, Progress]:
    """Weights of a run that has them, and how far it was; those at its end need no checkpoint."""
    if weights == "last":
        saved = load_newest(run_path)
        assert saved is not None, "check_evaluation saw a checkpoint"
        return saved.model, saved.progress
    epochs = read_history(run_path)["epochs"]
    state = read_state(weights_path(run_path, weights))
    return state, Progress(step=epochs[-1]["step"], epochs=epochs)


def _note(values: list[dict[str, Any]], num_runs: int) -> str:
    """The words behind the bar: of one run its epoch and last figures, of several their epochs."""
    if num_runs > 1:
        return ", ".join(
            f"{one['run'].rpartition('/')[2]} "
            + ("trained" if one["step"] == one["num_steps"] else f"epoch {one['epoch']}")
            for one in values
        )
    one = values[0]
    figures = [f"epoch {one['epoch']}", f"lr {one['lr']:.1e}"]
    for name, show in _FIGURES.items():
        if one.get(name):
            figures.append(show(one[name]))
    for name in ("loss", "mAP", "accuracy"):
        if one[name] is not None:
            figures.append(f"{name} {one[name]:.3f}")
    if one.get("scored_epoch"):
        figures[-1] += f" (epoch {one['scored_epoch']})"
    return ", ".join(figures)
