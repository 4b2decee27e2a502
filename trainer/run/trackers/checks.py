"""Whether a tracker can be used, to be known before a training begins."""

import importlib.util
import os

from pipeline import storage
from pipeline.errors import UserError
from trainer.recipe.settings import Tracker


def check_tracker(tracker: Tracker, run_path: str) -> None:
    """Check that the tracker's client is installed and knows where to write.

    Raises:
        UserError: it is not, or it does not.
    """
    if tracker and importlib.util.find_spec(tracker) is None:
        raise UserError(
            "train.tracker", f"{tracker} is not installed", f"pip install 'ast-ray[{tracker}]'"
        )
    if tracker == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            "train.tracker",
            "MLFLOW_TRACKING_URI is not set",
            "set it to the address of the MLflow server",
        )
    is_offline = os.environ.get("WANDB_MODE") == "offline"
    if tracker == "wandb" and is_offline and storage.is_remote(run_path):
        folder = os.environ.get("WANDB_DIR")
        if not folder:
            raise UserError(
                run_path,
                "W&B cannot keep the files of an offline run in a bucket",
                "set WANDB_DIR to a local folder for them",
            )
