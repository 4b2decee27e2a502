"""Steps that were skipped: `divergence.jsonl` in a run folder; the error for too many of them."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from pipeline import storage
from pipeline.errors import UserError
from trainer.checkpoints.progress import SkippedStep


class DivergedError(UserError):
    """A training has diverged, so its model is of no use."""


def write_bad_steps(run_path: str, steps: Sequence[SkippedStep]) -> None:
    """Write all skipped steps of a run."""
    lines = "".join(json.dumps(asdict(step), allow_nan=False) + "\n" for step in steps)
    storage.write_bytes(storage.join(run_path, "divergence.jsonl"), lines.encode())


def read_bad_steps(run_path: str) -> list[SkippedStep]:
    """What `write_bad_steps` wrote; empty where no step was skipped.

    Raises:
        UserError: the file is damaged.
    """
    path = storage.join(run_path, "divergence.jsonl")
    try:
        lines = storage.read_bytes(path).splitlines()
        return [storage.parse_document(line, SkippedStep) for line in lines]
    except FileNotFoundError:
        return []
    except storage.DocumentError as error:
        raise UserError(path, f"damaged: {error}", "remove it, no step depends on it") from error
