"""`divergence.jsonl` in a run folder: the steps that were skipped, a line each."""

import json
from collections.abc import Sequence
from typing import Any

from pipeline import storage
from pipeline.errors import UserError


def write_bad_steps(run_path: str, entries: Sequence[dict[str, Any]]) -> None:
    """Write all skipped steps of a run, a line each: step, epoch, loss, norm, ids of its clips."""
    lines = "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in entries)
    storage.write_bytes(storage.join(run_path, "divergence.jsonl"), lines.encode())


def read_bad_steps(run_path: str) -> list[dict[str, Any]]:
    """What `write_bad_steps` wrote; empty where no step was skipped.

    Raises:
        UserError: the file is damaged.
    """
    path = storage.join(run_path, "divergence.jsonl")
    try:
        entries = [json.loads(line) for line in storage.read_bytes(path).splitlines()]
        if not all({"step", "epoch", "loss", "grad_norm"} <= entry.keys() for entry in entries):
            raise ValueError("an entry lacks its figures")
    except FileNotFoundError:
        return []
    except (ValueError, AttributeError) as error:
        raise UserError(path, f"damaged ({error})", "remove it, no step depends on it") from error
    return entries
