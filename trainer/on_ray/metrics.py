"""The progress of a run as metrics of Ray, from its first worker."""

from pipeline.on_ray.gauges import Gauges
from trainer.run.run_folder import run_name
from trainer.run.run_progress import RunProgress

TRAIN_METRICS = {
    "ast_train_step": "Steps done",
    "ast_train_num_steps": "Steps of the whole run",
    "ast_train_epoch": "Epoch in progress, from 1",
    "ast_train_num_bad_steps": "Steps that were skipped",
    "ast_train_lr": "Learning rate",
    "ast_train_loss": "Mean training loss since the point before",
    "ast_train_clips_per_s": "Clips trained per second by all workers",
    "ast_train_data_wait_share": "Share of the time that the first worker waited for batches",
    "ast_train_mfu": "Model-FLOP utilisation, the share of the GPUs' peak FLOPs",
    "ast_train_peak_memory_bytes": "Peak memory of the first worker's GPU",
    "ast_train_eval_loss": "Loss on the evaluation clips after the last epoch",
    "ast_train_eval_map": "mAP on the evaluation clips after the last epoch",
    "ast_train_eval_accuracy": "Accuracy on the evaluation clips after the last epoch",
}
"""Names without Ray's prefix `ray_`, and descriptions."""

_OF_RUN = ("step", "num_steps", "epoch", "num_bad_steps", "lr")
_OF_POINT = ("loss", "clips_per_s", "data_wait_share", "mfu", "peak_memory_bytes")
_OF_EPOCH = {"eval_loss": "eval_loss", "mAP": "eval_map", "accuracy": "eval_accuracy"}


def run_gauges(run_path: str) -> Gauges:
    """The gauges of a run, labelled by its name, and by its folder, as names may repeat."""
    return Gauges(TRAIN_METRICS, {"run": run_name(run_path), "folder": run_path})


def values_of(progress: RunProgress) -> dict[str, float | None]:
    """What the gauges show of what `trainer.training.loop.train` reports; None: not known."""
    point, epoch = progress.last_point, progress.last_epoch
    values = {name: getattr(progress, name) for name in _OF_RUN}
    values |= {name: getattr(point, name, None) for name in _OF_POINT}
    values |= {shown: getattr(epoch, name, None) for name, shown in _OF_EPOCH.items()}
    return {f"ast_train_{name}": value for name, value in values.items()}
