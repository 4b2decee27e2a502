"""Checkpoints: everything a restart needs, one file each, in the run's `checkpoints/`.

The sampler, the augmentation and the schedule are pure functions of the seed and the position, so
a checkpoint holds the model, the optimiser, the position and the curves so far, and no generator
states. A file appears under its name only when complete.
"""

import io
import pickle
import re
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


def load_newest(run_path: str, device: torch.device) -> Checkpoint | None:
    """The newest checkpoint that is intact; None if the run has none.

    Raises:
        UserError: there are checkpoints, but none can be read.
    """
    paths = checkpoint_paths(run_path)
    for path in reversed(paths):
        try:
            document = torch.load(
                io.BytesIO(storage.read_bytes(path)), map_location=device, weights_only=True
            )
        except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
            print(f"{path}: damaged, trying the one before ({error})", flush=True)
            continue
        return Checkpoint(
            model=document["model"],
            optimiser=document["optimiser"],
            progress=Progress(**document["progress"]),
        )
    if paths:
        raise UserError(f"{_folder(run_path)}: none of the {len(paths)} checkpoints can be read")
    return None


def checkpoint_paths(run_path: str) -> list[str]:
    """All checkpoints of a run, the oldest first."""
    found = storage.list_files(_folder(run_path))
    return [path for path in found if re.search(r"/step-\d{8}\.pt$", path)]


def _folder(run_path: str) -> str:
    return storage.join(run_path, "checkpoints")
