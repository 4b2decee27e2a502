"""Runs of a search that Ray Tune's ASHA compares after some epochs, and stops if others are better.

ASHA counts the run's own epochs, so an interrupted search resumes: runs that are finished or were
stopped are told to ASHA before it starts, and an interrupted run first tells the epochs it has.

A run that is stopped ends itself: after each epoch its workers ask whether to go on. So it ends
with a checkpoint, and Ray Train frees all that it held; Tune alone would kill the trial and leave
the workers' placement group behind.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from pipeline.on_ray import process
from trainer.checkpoints.progress import EpochResult
from trainer.on_ray.board import Referee
from trainer.on_ray.settings import Workers
from trainer.on_ray.train import fit_training
from trainer.on_ray.tune import RunRecipes, fit_trials, trial_constants
from trainer.recipe.parse import make_recipe
from trainer.recipe.recipe import Recipe
from trainer.run.history import read_history
from trainer.studies.search.record import AshaSettings, mark_stopped

_POLL_S = 0.5
"""Time between two looks at whether a run has ended."""


class Asha(ASHAScheduler):
    """ASHA on the epochs of runs; marks the runs that it stops."""

    def __init__(self, settings: AshaSettings, num_epochs: int) -> None:
        super().__init__(
            time_attr="epoch",
            metric="score",
            mode="max",
            max_t=num_epochs,
            grace_period=settings.first_epoch,
            reduction_factor=settings.factor,
        )
        self._num_epochs = num_epochs

    def add_past(self, run_path: str, results: Sequence[dict[str, Any]]) -> None:
        """Let a run that has ended before count in the comparisons."""
        # Of both, ASHA uses only the id of the trial.
        controller: Any = None
        trial: Any = SimpleNamespace(trial_id=run_path)
        self.on_trial_add(controller, trial)
        for result in results:
            super().on_trial_result(controller, trial, result)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Called by Tune after each epoch of a run."""
        decision: str = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP and result["epoch"] < self._num_epochs:
            mark_stopped(trial.config["run"], result["epoch"])
        return decision


def run_with_asha(metric: str, settings: AshaSettings, past: Sequence[str]) -> RunRecipes:
    """What trains recipes, given by their run folders, on a connected Ray, as many at once as fit.

    Args:
        metric: by which runs are compared, the higher the better.
        settings: when they are.
        past: folders of runs of the same search that have ended before.

    Returns:
        A function as `trainer.on_ray.tune.run_recipes`.
    """

    def run(
        recipes: Mapping[str, Recipe],
        dataset_path: str,
        workers: Workers,
        *,
        at_once: int | None = None,
        on_finished: Callable[[str], None] = lambda run_path: None,
    ) -> dict[str, Exception]:
        scheduler = Asha(settings, next(iter(recipes.values())).train.epochs)
        for path in past:
            results = [_result(epoch, metric) for epoch in read_history(path).epochs]
            scheduler.add_past(path, results)
        with (
            trial_constants(recipes, dataset_path, workers, at_once) as (constants, num_at_once),
            _referee() as referee,
        ):
            constants |= {"referee": referee, "metric": metric}
            return fit_trials(
                tune.with_parameters(_Trial, constants=constants),
                list(recipes),
                num_at_once,
                on_finished=on_finished,
                board=constants["board"],
                scheduler=scheduler,
            )

    return run


@contextmanager
def _referee() -> Iterator[Any]:
    referee: Any = ray.remote(num_cpus=0)(Referee).remote()
    try:
        yield referee
    finally:
        ray.kill(referee)


class _Trial(tune.Trainable):
    """One run: a step of Tune is an epoch of it."""

    def setup(self, config: dict[str, Any], **parameters: Any) -> None:
        """Called by Tune in the process of the trial."""
        self._run, self._constants = config["run"], parameters["constants"]
        process.set_up(self._constants["log_level"])
        self._past = deque(read_history(self._run).epochs)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="run")
        self._fit: Any = None

    def step(self) -> dict[str, Any]:
        """Scores of the next epoch; those that the run has from before come first."""
        metric, referee = self._constants["metric"], self._constants["referee"]
        if self._past:
            return _result(self._past.popleft(), metric)
        if self._fit is None:
            self._fit = self._thread.submit(self._train)
        else:
            referee.go_on.remote(self._run)
        asked = referee.next_result.remote(self._run)
        while not self._fit.done():
            if ray.wait([asked], timeout=_POLL_S)[0]:
                return _result(ray.get(asked), metric)
        self._fit.result()
        return {**_result(read_history(self._run).epochs[-1], metric), "done": True}

    def cleanup(self) -> None:
        """Called by Tune at the end of the trial, and if it stops it."""
        if self._fit is not None and not self._fit.done():
            ray.get(self._constants["referee"].stop.remote(self._run))
        self._thread.shutdown()

    def _train(self) -> None:
        name, settings = self._constants["recipes"][self._run]
        fit_training(
            make_recipe(name, settings, where="recipe"),
            self._constants["dataset"],
            self._run,
            self._constants["workers"],
            self._constants["board"],
            self._constants["referee"],
        )


def _result(result: EpochResult, metric: str) -> dict[str, Any]:
    """What ASHA sees of an epoch; an undefined score is below all others."""
    score = getattr(result, metric)
    return {"epoch": result.epoch, "score": float("-inf") if score is None else score}
