"""A run in progress: its parts, and saving and restoring its checkpoints.

In: the parts that the loop has set up. Steps: copy all that a resumed run needs and write it in the
background. Out: checkpoints, curves and kept weights in the run folder.
"""

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn

import torch
from torch import Tensor

from pipeline.errors import PassingError
from trainer.checkpoints.averaging import remove_other_epochs, write_weights
from trainer.checkpoints.checkpoint import Background, Checkpoint, save_checkpoint
from trainer.checkpoints.paths import epoch_name
from trainer.checkpoints.progress import EpochResult, OpenWindow, Progress
from trainer.checkpoints.state_files import State
from trainer.data.clips import TrainingData
from trainer.data.epoch_plan import EpochPlan
from trainer.data.loader import Loader
from trainer.model.ast import AST
from trainer.recipe.recipe import Recipe
from trainer.run.history import write_history
from trainer.run.leaving import LeavingError
from trainer.run.run_progress import RunProgress
from trainer.run.tensorboard_log import TensorBoardLog
from trainer.run.trackers.follow import TrackerThread
from trainer.run.writer import writing
from trainer.training.fsdp import load_model, load_optimiser, shard_like, whole_copy
from trainer.training.step import Learner
from trainer.training.world import World

_logger = logging.getLogger(__name__)

Report = Callable[[RunProgress], None]
"""Called by the first rank after every step, for a progress bar."""
Asked = Callable[[], str]
"""Called by each rank before every step: why it is to leave the run; empty: it is not."""

GoOn = Callable[[EpochResult], bool]
"""Called by the first rank after every epoch but the last: whether to train the next."""


@dataclass(kw_only=True, slots=True, eq=False)
class Run:
    """The parts of a run in progress."""

    recipe: Recipe
    path: str
    data: TrainingData
    learner: Learner
    ema: State
    """Moving average of the weights; empty without one."""
    progress: Progress
    train_loader: Loader
    eval_loader: Loader
    log: TensorBoardLog | None
    """On the first rank."""
    tracker: TrackerThread | None
    """On the first rank, if the recipe names one."""
    token: str
    """Identifies the first rank as the writer of the run folder."""
    report: Report
    asked: Asked
    saved_at: float
    score_sum: Tensor | None = None
    """Sum of the evaluations' scores over the finished epochs, `[N, C]`."""
    background: Background = field(default_factory=Background)
    """Writes checkpoints, on the first rank."""

    @property
    def ast(self) -> AST:
        """The model itself."""
        return self.learner.ast

    @property
    def world(self) -> World:
        """The ranks."""
        return self.learner.world


def restore(run: Run, saved: Checkpoint) -> None:
    """Restore the run's state from a checkpoint."""
    load_model(run.ast, saved.model)
    load_optimiser(run.learner.optimiser, saved.optimiser)
    run.learner.scaler.load_state_dict(saved.scaler)
    run.ema = shard_like(saved.ema, run.ast.state_dict())
    run.progress, run.score_sum = saved.progress, saved.score_sum


def save_if_due(run: Run, plan: EpochPlan) -> None:
    """Save a checkpoint within an epoch if one is due; each epoch ends with one anyway.

    Not while steps are being skipped: the checkpoint to go back to must precede them.
    """
    waited_s = time.monotonic() - run.saved_at
    at_end = run.progress.epoch_step == plan.num_steps
    is_due = waited_s >= run.recipe.train.checkpoint_every_s and not at_end
    # Under FSDP all ranks take part in a checkpoint, so the first rank's clock decides for all.
    votes = torch.tensor(float(is_due and run.world.is_first), device=run.world.device)
    if run.world.sum(votes) and not run.progress.num_bad_in_a_row:
        save(run, is_needed=False)


def leave(run: Run, window: OpenWindow) -> NoReturn:
    """Save a checkpoint of this step, and end the loop once it is written; all ranks call it.

    Not while steps are being skipped, as in `save_if_due`.

    Raises:
        LeavingError: always.
    """
    if not run.progress.num_bad_in_a_row and not any(step.is_bad for step in window.steps):
        run.progress.window = window
        save(run, is_needed=False)
    wait_for_writes(run)
    raise LeavingError(run.progress.step, run.world.share(run.asked()))


def wait_for_writes(run: Run) -> None:
    """Wait until all ranks can see the first rank's files."""
    run.background.wait()
    run.world.wait()


def save(run: Run, needed_epochs: Collection[int] = (), *, is_needed: bool = True) -> None:
    """Write a checkpoint and the curves in the background, from a copy of the state.

    The first rank writes; under FSDP it gathers the state.

    Args:
        run: the run.
        needed_epochs: at an epoch's end, the epochs whose weights to keep.
        is_needed: whether an unreachable storage is an error; else training goes on.
    """
    run.saved_at = time.monotonic()
    # One copy at a time: each takes three times the memory of the model.
    run.background.wait()
    copy = partial(whole_copy, keep=run.world.is_first)
    checkpoint = Checkpoint(
        model=copy(run.ast.state_dict()),
        optimiser=copy(run.learner.optimiser.state_dict()),
        progress=run.progress.copy(),
        ema=copy(run.ema),
        scaler=copy(run.learner.scaler.state_dict()),
        score_sum=copy(run.score_sum),
    )
    if run.world.is_first:
        write = _write if is_needed else _try_to_write
        run.background.start(partial(write, run, checkpoint, needed_epochs))


def _try_to_write(run: Run, saved: Checkpoint, needed_epochs: Collection[int]) -> None:
    try:
        _write(run, saved, needed_epochs)
    except PassingError as error:
        step = saved.progress.step
        _logger.warning("%s; training goes on without the checkpoint of step %d", error, step)


def _write(run: Run, saved: Checkpoint, needed_epochs: Collection[int]) -> None:
    """Write kept weights and logs first: a resumed run expects them beside its checkpoint."""
    with writing(run.path, run.token):
        if saved.progress.epoch - 1 in needed_epochs:
            write_weights(run.path, epoch_name(saved.progress.epoch - 1), saved.model)
        if run.log is not None:
            run.log.flush()
        path = save_checkpoint(run.path, saved)
        _logger.debug("%s: written", path)
        write_history(run.path, saved.progress, finished=False)
        if needed_epochs:
            remove_other_epochs(run.path, needed_epochs)
    if run.tracker is not None:
        run.tracker.follow(saved.progress)
