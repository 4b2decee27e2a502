"""A run in Weights & Biases: by `wandb`, as its variables say (`WANDB_MODE`, `WANDB_PROJECT`, ...).

Its files stand in the run's folder, where `wandb sync` finds those of an offline run; for a run in
a bucket they stand in `WANDB_DIR`, or in a temporary folder. Beside curves and settings, W&B is
told nothing of the program: neither its command line nor its code.
"""

import os
import secrets
import tempfile
from collections.abc import Sequence
from typing import Any

from pipeline import storage
from trainer.run.trackers.client import PROJECT, Row, TrackedRun


class WandbClient:
    """See `Client`."""

    def open(self, run: TrackedRun, tracker_id: str) -> str:
        import wandb

        folder = run.path
        if storage.is_remote(folder):
            folder = os.environ.get("WANDB_DIR") or tempfile.mkdtemp(prefix="wandb-")
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=tracker_id or secrets.token_hex(4),
            resume="allow",
            name=run.name,
            dir=folder,
            tags=[run.recipe],
            config={**run.settings, "folder": run.path},
            allow_val_change=True,
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                x_disable_meta=True,
            ),
        )
        return str(self._run.id)

    def send(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._run.log(row.values, step=row.step)

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)
