"""Checkpoints: everything a restart needs, one file each, in the run's `checkpoints/`.

The sampler, the augmentation, the schedule and torch's own generators are functions of the seed and
the position, so a checkpoint holds the model, the optimiser, averages, the position and the curves
so far, and no generator states. A file appears under its name only when complete; training goes on
while a copy of its state is written.
"""

import io
import logging
import zipfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline import storage
from pipeline.errors import UserError, first_line
from trainer.checkpoints.paths import checkpoint_paths, checkpoints_path
from trainer.checkpoints.progress import Progress

_logger = logging.getLogger(__name__)

NUM_KEPT = 2
"""Checkpoints kept; the older one is for the case that the newer is damaged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A moment of a run."""

    model: dict[str, Tensor]
    optimiser: dict[str, Any]
    progress: Progress
    ema: dict[str, Tensor] = field(default_factory=dict)
    """Moving average of the model; empty without one."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """State of the loss scaler; empty but in float16."""
    score_sum: Tensor | None = None
    """Sum of the evaluations' scores over the finished epochs, `[N, C]`."""


_TENSOR_FIELDS = ("model", "optimiser", "ema", "scaler", "score_sum")


class Background:
    """Runs work in one thread, in order; the next call raises the error of the work before it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._last: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Start work once the work before it is done; raises the error of that."""
        self.wait()
        self._last = self._pool.submit(work)

    def wait(self) -> None:
        """Wait until the work is done; raises its error."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Wait until the work is done; drops its error."""
        self._pool.shutdown()


def save_checkpoint(run_path: str, checkpoint: Checkpoint) -> str:
    """Write a checkpoint, then remove all but the newest `NUM_KEPT`; returns its path."""
    buffer = io.BytesIO()
    document = {name: getattr(checkpoint, name) for name in _TENSOR_FIELDS}
    document["progress"] = asdict(checkpoint.progress)
    torch.save(document, buffer)
    path = storage.join(checkpoints_path(run_path), f"step-{checkpoint.progress.step:08d}.pt")
    storage.write_bytes(path, buffer.getvalue())
    for old in checkpoint_paths(run_path)[:-NUM_KEPT]:
        storage.remove(old)
    return path


def load_newest(
    run_path: str, check: Callable[[Checkpoint], None] = lambda saved: None
) -> Checkpoint | None:
    """The newest checkpoint that is intact, on the CPU; None if the run has none.

    Args:
        run_path: the run.
        check: raises an error for a checkpoint that does not fit; then the one before is tried.

    Raises:
        UserError: there are checkpoints, but all are damaged.
    """
    paths = checkpoint_paths(run_path)
    damaged: dict[str, str] = {}
    for path in reversed(paths):
        try:
            saved = _read(path, check)
        except _DamagedError as error:
            damaged[path] = str(error)
            continue
        for other, reason in damaged.items():
            _logger.warning("%s: damaged, trying the one before (%s)", other, reason)
        return saved
    if damaged:
        raise UserError(
            checkpoints_path(run_path),
            f"all {len(paths)} checkpoints are damaged ({damaged[paths[-1]]})",
            "remove the run and start it again",
        )
    return None


class _DamagedError(Exception):
    """A checkpoint cannot be read, or does not fit."""


def _read(path: str, check: Callable[[Checkpoint], None]) -> Checkpoint:
    try:
        data = storage.read_bytes(path)
    except storage.NoFileError as error:
        raise _DamagedError(error.what) from error
    except FileNotFoundError as error:
        raise _DamagedError("is missing") from error
    try:
        saved = _decode(data)
        if f"/step-{saved.progress.step:08d}.pt" not in path:
            raise ValueError(f"is of step {saved.progress.step}")
        check(saved)
    # The content alone is at fault, and garbage makes unpickling raise nearly anything.
    except Exception as error:
        raise _DamagedError(f"{type(error).__name__}: {first_line(error)}") from error
    return saved


def load_last(run_path: str) -> Checkpoint:
    """As `load_newest`, of a run that must have a checkpoint.

    Raises:
        UserError: it has none, or all are damaged.
    """
    saved = load_newest(run_path)
    if saved is None:
        raise UserError(run_path, "the run has no checkpoint yet")
    return saved


def _decode(data: bytes) -> Checkpoint:
    """A checkpoint from a file's content; no code that a pickle may hold is run."""
    file = io.BytesIO(data)
    # torch writes checksums, but does not look at them when it loads.
    damaged = zipfile.ZipFile(file).testzip()
    if damaged is not None:
        raise ValueError(f"wrong checksum of {damaged}")
    file.seek(0)
    document = torch.load(file, map_location="cpu", weights_only=True)
    progress = storage.conform(document["progress"], Progress)
    return Checkpoint(**{**document, "progress": progress})
