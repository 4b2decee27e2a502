"""The curves of a run: `history.json` in its folder."""

import logging
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Literal

from pipeline import storage
from pipeline.errors import UserError
from pipeline.terminal.units import counted
from trainer.checkpoints.progress import CurvePoint, EpochResult, Progress
from trainer.run.skipped_steps import DivergedError

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """What a run logged."""

    format_version: Literal[1] = 1
    steps: tuple[CurvePoint, ...] = ()
    epochs: tuple[EpochResult, ...] = ()
    finished: bool
    """Whether nothing is left to do."""

    def __post_init__(self) -> None:
        if [result.epoch for result in self.epochs] != list(range(1, len(self.epochs) + 1)):
            raise ValueError("epochs: must be numbered from 1 without a gap")
        numbers = {
            "steps": [point.step for point in self.steps],
            "epochs": [result.step for result in self.epochs],
        }
        for name, steps in numbers.items():
            if any(later < earlier for earlier, later in pairwise(steps)):
                raise ValueError(f"{name}: must be in the order of their steps")

    @property
    def num_steps(self) -> int:
        """Steps of the run so far, skipped ones among them."""
        return self.steps[-1].step if self.steps else 0


def write_history(run_path: str, progress: Progress, *, finished: bool) -> None:
    """Write the curves so far."""
    history = History(steps=tuple(progress.steps), epochs=tuple(progress.epochs), finished=finished)
    storage.write_json(_path(run_path), asdict(history))


def read_history(run_path: str) -> History:
    """The curves of a run; empty ones before its first epoch is through.

    Raises:
        UserError: the file is damaged.
    """
    remedy = "the command that trained the run writes it again"
    try:
        return storage.read_document(_path(run_path), History, remedy)
    except FileNotFoundError:
        return History(finished=False)


def is_finished(run_path: str) -> bool:
    """Whether a run has nothing left to do, such as writing its damaged history again."""
    try:
        return read_history(run_path).finished
    except UserError as error:
        _logger.warning("%s", error)
        return False


def num_epochs_begun(run_path: str) -> int:
    """Epochs of which a run has made at least one step, or is about to.

    Raises:
        UserError: the curves are damaged.
    """
    history = read_history(run_path)
    return len(history.epochs) + (not history.finished)


def reopen(run_path: str, num_epochs: int) -> None:
    """Mark a finished run as unfinished if it is to have more epochs than it has.

    Raises:
        UserError: the curves are damaged.
    """
    if is_finished(run_path):
        history = read_history(run_path)
        if len(history.epochs) < num_epochs:
            storage.write_json(_path(run_path), asdict(replace(history, finished=False)))


def check_learned(run_path: str) -> None:
    """Refuse a finished run that has learned nothing.

    Raises:
        DivergedError: every step was skipped.
    """
    history = read_history(run_path)
    num_skipped = sum(point.num_bad_steps for point in history.steps)
    if history.finished and num_skipped and num_skipped == history.num_steps:
        raise DivergedError(
            run_path,
            f"all {counted(num_skipped, 'step')} were skipped, so the model has learned nothing",
            "divergence.jsonl there has their losses and gradients: raise "
            "train.max_gradient_norm or lower schedule.lr, and give another --out",
        )


def _path(run_path: str) -> str:
    return storage.join(run_path, "history.json")
