"""Where a run's checkpoints and other weights are.

Loads no PyTorch, so that a step can look for them at once.
"""

import re

from pipeline import storage
from pipeline.errors import UserError


def checkpoints_path(run_path: str) -> str:
    """The folder of a run's checkpoints."""
    return storage.join(run_path, "checkpoints")


def checkpoint_paths(run_path: str) -> list[str]:
    """All checkpoints of a run, the oldest first."""
    files = storage.list_files(checkpoints_path(run_path))
    return [path for path in files if re.search(r"/step-\d{8}\.pt$", path)]


def weights_path(run_path: str, name: str) -> str:
    """Where weights of a run stand: `epoch-05`, `averaged`, `ema` or `best`."""
    return storage.join(run_path, "epochs", f"{name}.safetensors")


def check_weights(run_path: str, name: str) -> None:
    """Refuse weights beside the last that a run does not have.

    Raises:
        UserError: they are not there.
    """
    if not storage.exists(weights_path(run_path, name)):
        raise UserError(
            run_path,
            f"no weights {name!r} there",
            "averaging.first_epoch, averaging.ema_decay and train.select_by ask for such, "
            "and the end of the run writes them",
        )


def epoch_name(epoch: int) -> str:
    """What an epoch's weights are called."""
    return f"epoch-{epoch:02d}"
