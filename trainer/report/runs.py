"""Reads run folders for the report.

In: folders of runs, ensembles and cross-validations, local or in a bucket, finished or not. Out: a
`ReportedRun` for each run, with a short unique name but without checkpoints and predictions, and
the scores of ensembles. A folder that is no run and a damaged file are errors.
"""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pipeline import storage
from pipeline.errors import UserError
from trainer.checkpoints.progress import CurvePoint, EpochResult, SkippedStep
from trainer.optim.settings import ScheduleSettings
from trainer.report import figures
from trainer.run.history import read_history
from trainer.run.run_folder import DataInfo, RunInfo, read_recipe, read_run
from trainer.run.skipped_steps import read_bad_steps
from trainer.scores.metrics import METRICS, ClassMetrics
from trainer.scores.predictions import ScoredClips, metrics_path, read_metrics
from trainer.studies.shared import check_result, read_diverged, read_failed, read_runs

_OF_TRAINING = {"augment", "sampler", "schedule", "optimiser", "averaging", "train"}
"""Sections whose settings had no effect on an imported model."""
_IN_EFFECT = {"loss", "scores"}
"""Except these."""

_STUDIES = ("ensemble", "cross_validation", "repeated_cross_validation", "search")
"""Names of the JSON files that list the runs of a folder."""

Row = dict[str, Any]
"""Plain data for the template."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """A row of results; undefined or unknown scores are None."""

    num_clips: int | None = None
    mAP: float | None = None  # noqa: N815 (the field's name for it)
    mAUC: float | None = None  # noqa: N815
    d_prime: float | None = None
    accuracy: float | None = None
    chance_mAP: float | None = None  # noqa: N815
    per_class: tuple[ClassMetrics, ...] = ()
    epoch: int | None = None
    """Epoch of the `best` weights."""
    step: int | None = None
    """Steps that the weights were trained for."""
    function: str | None = None
    """`sigmoid` or `softmax`: what made scores of the model's outputs."""

    @property
    def is_unlabelled(self) -> bool:
        """Whether these are of clips without any label."""
        return bool(self.per_class) and not any(entry.num_positives for entry in self.per_class)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportedRun:
    """Contents of one run folder."""

    path: str
    name: str
    """Short, and unique on the page."""
    info: RunInfo
    steps: tuple[CurvePoint, ...]
    epochs: tuple[EpochResult, ...]
    is_finished: bool
    evaluations: dict[str, Scores]
    """By the name of the predictions."""
    bad_steps: list[SkippedStep]

    @property
    def data(self) -> DataInfo:
        """The data that it was trained and evaluated on."""
        return self.info.data

    @property
    def main_evaluation(self) -> str | None:
        """Name of the predictions that represent the run, preferably on its evaluation clips."""
        preferred = [self.data.eval_name, *self.evaluations]
        current = {name for name, scores in self.evaluations.items() if not self._is_old(scores)}
        return next((name for name in preferred if name in current), None)

    def _is_old(self, scores: Scores) -> bool:
        """Whether scores are of an earlier end of the run, after which it went on."""
        if not self.epochs or scores.step is None:
            return False
        if scores.epoch is not None:  # the best weights are chosen at the end
            return not self.is_finished
        return scores.step < self.epochs[-1].step

    def _title(self, name: str, scores: Scores) -> str:
        if self._is_old(scores):
            return f"{name} (step {scores.step}, before the run went on)"
        return f"{name} (epoch {scores.epoch})" if scores.epoch else name

    @property
    def final(self) -> Scores:
        """Scores of the main evaluation; without one, of the last epoch, if any."""
        if self.main_evaluation is not None:
            return self.evaluations[self.main_evaluation]
        num_clips = self.data.num_eval_clips
        if not self.epochs:
            return Scores(num_clips=num_clips)
        last = self.epochs[-1]
        scores = {key: getattr(last, key) for key in METRICS}
        return Scores(num_clips=num_clips, **scores)

    @property
    def all_evaluations(self) -> dict[str, Scores]:
        """Scores of all predictions, and of the mean over the epochs, by their titles."""
        evaluations = {
            self._title(name, scores): scores for name, scores in self.evaluations.items()
        }
        is_stored = f"{self.data.eval_name}-cumulative" in self.evaluations
        has_mean = len(self.epochs) > 1 and self.epochs[-1].cumulative_mAP is not None
        if has_mean and not is_stored:
            name = f"{self.data.eval_name}, mean of the scores of all epochs"
            mean = {key: getattr(self.epochs[-1], f"cumulative_{key}") for key in METRICS}
            evaluations[name] = Scores(num_clips=self.data.num_eval_clips, **mean)
        return evaluations

    @property
    def train_s(self) -> float:
        """Seconds of training, without evaluation."""
        return math.fsum(epoch.train_s or 0 for epoch in self.epochs)

    @property
    def curves(self) -> figures.RunCurves:
        """The run's curves."""
        return figures.RunCurves(
            name=self.name,
            steps=self.steps,
            epochs=self.epochs,
            published=self.published,
            schedule=self._schedule,
        )

    def setting(self, section: str, key: str) -> str | None:
        """A setting as text, or a dash if the run is older than it; None if it had no effect."""
        is_unused = section in _OF_TRAINING and key not in _IN_EFFECT
        if self.info.imported_from is not None and is_unused:
            return None
        settings = self.info.settings.get(section, {})
        return _setting(settings[key]) if key in settings else "–"

    @property
    def _schedule(self) -> ScheduleSettings | None:
        try:
            return read_recipe(self.path, self.info).schedule
        except UserError:
            # An older run may have settings that no longer exist.
            return None

    @property
    def no_evaluation(self) -> str:
        """Why there are no predictions, and how to get them."""
        if not self.is_finished:
            return (
                "There are no predictions yet; they are written after the last evaluation, at the "
                "end of the run."
            )
        return (
            f"The run is finished, but its predictions on {self.data.eval_name} are missing; "
            f"`evaluate {self.path}` makes them."
        )

    @property
    def published(self) -> dict[str, list[float]]:
        """Published scores after each epoch, by metric, from the recipe."""
        published = self.info.settings.get("published", {})
        try:
            return storage.conform(published, dict[str, list[storage.Number]])
        except storage.DocumentError as error:
            path, what = storage.join(self.path, "run.json"), f"settings.published.{error}"
            raise UserError(path, f"damaged: {what}", "restore it") from error

    @property
    def published_epochs(self) -> list[Row]:
        """Published scores, a row per epoch."""
        given = {key: values for key, values in self.published.items() if values}
        rows = itertools.zip_longest(*given.values())
        return [dict(zip(given, row, strict=True)) for row in rows]


def load_run(path: str, name: str) -> ReportedRun:
    """Read a run folder, except for its checkpoints and predictions.

    Raises:
        UserError: the folder is no run, or a file in it is damaged.
    """
    info, history = read_run(path), read_history(path)
    files = storage.list_files(storage.join(path, "predictions"))
    names = [PurePosixPath(file).stem for file in files if file.endswith(".json")]
    evaluations = {name: _scores(_read_metrics(path, name, info.data.labels)) for name in names}
    return ReportedRun(
        path=path,
        name=name,
        info=info,
        steps=history.steps,
        epochs=history.epochs,
        is_finished=history.finished,
        evaluations=evaluations,
        bad_steps=read_bad_steps(path),
    )


def _read_metrics(path: str, name: str, labels: list[str]) -> ScoredClips:
    scored = read_metrics(path, name)
    if [entry.label for entry in scored.metrics.per_class] != labels:
        raise UserError(
            metrics_path(path, name),
            "has other classes than run.json beside it",
            "one of the two is of another run or damaged: restore it",
        )
    return scored


def _scores(scored: ScoredClips) -> Scores:
    metrics = scored.metrics
    return Scores(
        num_clips=metrics.num_clips,
        **{key: getattr(metrics, key) for key in METRICS},
        chance_mAP=metrics.chance_mAP,
        per_class=metrics.per_class,
        epoch=scored.source.epoch,
        step=scored.source.checkpoint_step,
        function=scored.source.score_function,
    )


def member_paths(folder: str) -> list[str]:
    """The runs of a folder: itself, or those of an ensemble or a cross-validation.

    Raises:
        UserError: what names the runs of one is damaged.
    """
    if storage.exists(storage.join(folder, "run.json")):
        return [folder]
    results = _results(folder)
    for result in results:
        check_result(result)
    if scored := list(dict.fromkeys(itertools.chain.from_iterable(map(read_runs, results)))):
        return scored
    # Not scored yet.
    files = storage.list_files(folder)
    runs = [path.removesuffix("/run.json") for path in files if path.endswith("/run.json")]
    return [run for run in runs if run.rpartition("/")[0] == folder] or [folder]


def diverged_paths(folder: str) -> list[str]:
    """The runs that an ensemble or a cross-validation in a folder names as diverged."""
    return list(dict.fromkeys(itertools.chain.from_iterable(map(read_diverged, _results(folder)))))


def failed_paths(folder: str) -> dict[str, str]:
    """The runs that an ensemble or a cross-validation in a folder names as failed, and why."""
    failed: dict[str, str] = {}
    for result in _results(folder):
        failed |= read_failed(result)
    return failed


def run_names(paths: Sequence[str]) -> list[str]:
    """Short unique names: the last parts of each path, as few as tell the runs apart."""
    parts = [path.rpartition("://")[2].strip("/").split("/") for path in paths]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{part[-1]} ({number})" for number, part in enumerate(parts, start=1)]


def _setting(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _results(folder: str) -> list[str]:
    return [storage.join(folder, f"{name}.json") for name in _STUDIES]
