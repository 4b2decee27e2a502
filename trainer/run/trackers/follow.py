"""A tracker that follows a run: it is sent what checkpoints hold and it does not have yet.

In: the progress of a checkpoint, whenever one is written. Steps: a thread sends the new points of
the curves, and notes in `tracker.json` which it has sent. Out: each point once in the same run of
the tracker, also after a restart, and also if the tracker did not answer for a while. The training
neither waits for it nor ends with it.
"""

import logging
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pipeline import storage
from pipeline.errors import UserError, one_line
from trainer.checkpoints.progress import CurvePoint, EpochResult, Progress
from trainer.recipe.recipe import Recipe
from trainer.recipe.settings import Tracker
from trainer.run.run_folder import run_name
from trainer.run.trackers.checks import check_tracker
from trainer.run.trackers.client import Client, Row, TrackedRun
from trainer.run.trackers.mlflow_client import MLflowClient
from trainer.run.trackers.wandb_client import WandbClient

_logger = logging.getLogger(__name__)

CLOSE_S, STOP_S = 60.0, 10.0
"""Longest wait for the tracker at the end of a run, and when it stops before."""
_MAX_REASON = 300
"""Characters of an error that are shown."""
_SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
"""In names of variables whose values are not shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """`tracker.json`: the run in the tracker, and what it has."""

    format_version: Literal[1] = 1
    tracker: Tracker
    id: str
    step: storage.Count = 0
    """Last step of the training curve."""
    epoch: storage.Count = 0
    """Last finished epoch."""


class TrackerThread:
    """Sends the curves of one run to its tracker."""

    def __init__(self, recipe: Recipe, run_path: str, client: Client) -> None:
        settings = {
            f"{section}.{key}": value
            for section, keys in recipe.to_json().items()
            for key, value in keys.items()
            if section != "published"
        }
        self._run = TrackedRun(
            path=run_path, name=run_name(run_path), recipe=recipe.name, settings=settings
        )
        self._client = client
        self._sent = _read(run_path, recipe.train.tracker)
        self._is_open = False
        self._is_failing = False
        self._news = threading.Condition()
        self._progress: Progress | None = None
        self._end: bool | None = None
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()

    def follow(self, progress: Progress) -> None:
        """Send this progress, which must not change any more; returns at once."""
        with self._news:
            self._progress = progress
            self._news.notify()

    def close(self, *, finished: bool) -> None:
        """Send what is left, for `CLOSE_S` or `STOP_S` at most, and end the thread."""
        with self._news:
            self._end = finished
            self._news.notify()
        wait_s = CLOSE_S if finished else STOP_S
        self._thread.join(wait_s)
        if self._thread.is_alive():
            self._warn(TimeoutError(f"no answer within {wait_s:g} s"))

    def _work(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._progress is not None or self._end is not None)
                progress, self._progress = self._progress, None
                end = self._end
            try:
                if progress is not None:
                    self._send(progress)
                if end is not None and self._is_open:
                    self._client.close(finished=end)
            # A tracker that fails must not end a run of days, whatever it raises.
            except Exception as error:
                self._warn(error)
            if end is not None:
                return

    def _send(self, progress: Progress) -> None:
        if not self._is_open:
            tracker_id = self._client.open(self._run, self._sent.id)
            self._is_open = True
            self._note(replace(self._sent, id=tracker_id))
        points = [point for point in progress.steps if point.step > self._sent.step]
        epochs = [result for result in progress.epochs if result.epoch > self._sent.epoch]
        self._client.send(sorted(_rows(points, epochs), key=lambda row: row.step))
        step = points[-1].step if points else self._sent.step
        epoch = epochs[-1].epoch if epochs else self._sent.epoch
        self._note(replace(self._sent, step=step, epoch=epoch))
        if self._is_failing:
            self._is_failing = False
            _logger.info("train.tracker: %s answers again", self._sent.tracker)

    def _note(self, sent: Sent) -> None:
        if sent != self._sent:
            storage.write_json(_path(self._run.path), asdict(sent))
            self._sent = sent

    def _warn(self, error: Exception) -> None:
        if not self._is_failing:
            self._is_failing = True
            _logger.warning(
                "train.tracker: %s fails (%s); training goes on, and what is missing is sent later",
                *(self._sent.tracker, without_secrets(error)),
            )


def start_tracker(recipe: Recipe, run_path: str) -> TrackerThread | None:
    """The tracker of a run; None if its recipe names none.

    Raises:
        UserError: see `check_tracker`.
    """
    tracker = recipe.train.tracker
    if not tracker:
        return None
    check_tracker(tracker, run_path)
    client: Client = MLflowClient() if tracker == "mlflow" else WandbClient()
    return TrackerThread(recipe, run_path, client)


def without_secrets(error: BaseException) -> str:
    """An error's message in one line, without passwords in URLs and values of secret variables."""
    text = re.sub(r"://[^/@\s]*@", "://", one_line(error))
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) > 3:
            text = text.replace(value, "***")
    return text[:_MAX_REASON]


def _rows(points: list[CurvePoint], epochs: list[EpochResult]) -> Iterator[Row]:
    for point in points:
        yield Row(step=point.step, values=_values("train", asdict(point)))
    for result in epochs:
        yield Row(step=result.step, values=_values("eval", asdict(result)))


def _values(prefix: str, fields: dict[str, Any]) -> dict[str, float]:
    known = {name: value for name, value in fields.items() if value is not None and name != "step"}
    return {f"{prefix}/{name}": float(value) for name, value in known.items()}


def _read(run_path: str, tracker: Tracker) -> Sent:
    """What the tracker has; nothing if it is another than before, or the file is damaged."""
    try:
        sent = storage.read_document(_path(run_path), Sent, "it is written again")
    except FileNotFoundError:
        return Sent(tracker=tracker, id="")
    except UserError as error:
        _logger.warning("%s; the run begins anew in the tracker", error)
        return Sent(tracker=tracker, id="")
    return sent if sent.tracker == tracker else Sent(tracker=tracker, id="")


def _path(run_path: str) -> str:
    return storage.join(run_path, "tracker.json")
