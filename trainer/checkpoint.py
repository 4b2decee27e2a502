"""Checkpoints: everything a restart needs, one file each, in the run's `checkpoints/`.

The sampler, the augmentation and the schedule are pure functions of the seed and the position, so
a checkpoint holds the model, the optimiser, the position and the curves so far, and no generator
states. A file appears under its name only when complete.
"""

import io
import re
import sys
import zipfile
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline import storage
from pipeline.errors import UserError

NUM_KEPT = 2
"""Checkpoints kept; the older one is for the case that the newer is damaged."""


@dataclass(kw_only=True, slots=True)
class Progress:
    """How far a run is: what is written, and carried on from."""

    epoch: int = 1
    """The epoch in progress, from 1; one past the last when the run is through."""
    epoch_step: int = 0
    """Steps done in it."""
    step: int = 0
    """Steps done in the run."""
    loss_sum: float = 0.0
    """Sum of the losses of the epoch's clips so far."""
    num_clips: int = 0
    """Those clips."""
    train_s: float = 0.0
    """Seconds trained in the epoch so far."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Points of the training curve."""
    epochs: list[dict[str, Any]] = field(default_factory=list)
    """One entry for each finished epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A moment of a run."""

    model: dict[str, Tensor]
    optimiser: dict[str, Any]
    progress: Progress


def save_checkpoint(run_path: str, checkpoint: Checkpoint) -> str:
    """Write a checkpoint, then remove all but the newest `NUM_KEPT`; returns its path."""
    buffer = io.BytesIO()
    document = {
        "model": checkpoint.model,
        "optimiser": checkpoint.optimiser,
        "progress": asdict(checkpoint.progress),
    }
    torch.save(document, buffer)
    path = storage.join(_folder(run_path), f"step-{checkpoint.progress.step:08d}.pt")
    storage.with_retries(storage.write_bytes, path, buffer.getvalue())
    for old in checkpoint_paths(run_path)[:-NUM_KEPT]:
        storage.remove(old)
    return path


def load_newest(run_path: str) -> Checkpoint | None:
    """The newest checkpoint that is intact, on the CPU; None if the run has none.

    Raises:
        UserError: there are checkpoints, but all are damaged.
    """
    paths = checkpoint_paths(run_path)
    for path in reversed(paths):
        data = storage.with_retries(storage.read_bytes, path)
        try:
            return _decode(data)
        # The content alone is at fault, and garbage makes unpickling raise nearly anything.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            print(f"{path}: damaged, trying the one before ({reason})", file=sys.stderr, flush=True)
    if paths:
        raise UserError(
            f"{_folder(run_path)}: all {len(paths)} checkpoints are damaged; remove the run and "
            f"start it again"
        )
    return None


def checkpoint_paths(run_path: str) -> list[str]:
    """All checkpoints of a run, the oldest first."""
    found = storage.list_files(_folder(run_path))
    return [path for path in found if re.search(r"/step-\d{8}\.pt$", path)]


def _decode(data: bytes) -> Checkpoint:
    """A checkpoint from a file's content; no code that a pickle may hold is run."""
    file = io.BytesIO(data)
    # torch writes checksums, but does not look at them when it loads.
    damaged = zipfile.ZipFile(file).testzip()
    if damaged is not None:
        raise ValueError(f"wrong checksum of {damaged}")
    file.seek(0)
    document = torch.load(file, map_location="cpu", weights_only=True)
    return Checkpoint(
        model=document["model"],
        optimiser=document["optimiser"],
        progress=Progress(**document["progress"]),
    )


def _folder(run_path: str) -> str:
    return storage.join(run_path, "checkpoints")
