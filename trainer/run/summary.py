"""What `train` and `evaluate` tell the user at the end, as tables for the terminal, or an error."""

from typing import Any, get_args

from rich.console import Group

from pipeline import storage
from pipeline.errors import UserError
from pipeline.terminal.tables import facts_table, titled
from trainer.checkpoints.settings import Weights
from trainer.run.run_folder import read_history
from trainer.run.skipped_steps import read_bad_steps
from trainer.scores.metrics import METRICS
from trainer.scores.predictions import predictions_name, predictions_path, read_metrics

_NUM_SHOWN = 5


def metrics_summary(run_path: str, name: str) -> Group:
    """The metrics of a run's predictions on a clip set, with its best and worst classes.

    Raises:
        UserError: they are not there, or a file of the run is damaged.
    """
    metrics = read_metrics(run_path, name)
    table = facts_table()
    if "weights" in metrics:
        epoch = f", of epoch {metrics['epoch']}" if "epoch" in metrics else ""
        table.add_row("weights", metrics["weights"] + epoch)
    table.add_row("clips", f"{metrics['num_clips']:,}")
    table.add_row("mAP", f"{_number(metrics['mAP'])} (chance {_number(metrics['chance_mAP'])})")
    for key in METRICS[1:]:
        table.add_row(key.replace("_", "-"), _number(metrics[key]))
    if "common" in metrics:
        common = metrics["common"]
        table.add_row(
            "common subset", f"mAP {_number(common['mAP'])} on {common['num_clips']:,} clips"
        )
    for weights in get_args(Weights)[1:]:
        other = predictions_name(name, weights)
        if storage.exists(predictions_path(run_path, other)):
            table.add_row(f"{weights} weights", _other_row(read_metrics(run_path, other)))
    if metrics["num_classes_left_out"]:
        table.add_row("left out", f"{metrics['num_classes_left_out']} classes without positives")
    scored = [one for one in metrics["per_class"] if one["AP"] is not None]
    ordered = sorted(scored, key=lambda one: -one["AP"])
    if len(ordered) > 2 * _NUM_SHOWN:
        table.add_row(f"best {_NUM_SHOWN}", _classes(ordered[:_NUM_SHOWN]))
        table.add_row(f"worst {_NUM_SHOWN}", _classes(ordered[-_NUM_SHOWN:]))
    else:
        table.add_row("AP by class", _classes(ordered))
    history = read_history(run_path)
    epochs = history["epochs"]
    if epochs:
        train_s = sum(epoch.get("train_s") or 0 for epoch in epochs)
        table.add_row("training", f"epochs: {len(epochs)}, {train_s:,.0f} s")
    if num_skipped := len(read_bad_steps(run_path)):
        num_steps = _num_steps(history)
        table.add_row("skipped", f"{num_skipped} of {num_steps} steps, see divergence.jsonl")
    return titled(f"{run_path} on {name}", table)


def check_learned(run_path: str) -> None:
    """Refuse a run that is through and has learned nothing.

    Raises:
        UserError: every step was skipped.
    """
    history = read_history(run_path)
    num_skipped = sum(point.get("num_bad_steps") or 0 for point in history["steps"])
    if history["finished"] and num_skipped and num_skipped == _num_steps(history):
        raise UserError(
            run_path,
            f"all {num_skipped} steps were skipped, so the model has learned nothing",
            "divergence.jsonl there has their losses and gradients: raise "
            "train.max_gradient_norm or lower schedule.lr, and give another --out",
        )


def _num_steps(history: dict[str, Any]) -> int:
    """Steps of the run, skipped ones among them."""
    return history["steps"][-1]["step"] if history["steps"] else 0


def _classes(classes: list[dict[str, Any]]) -> str:
    # Labels of AudioSet have commas in them.
    return "; ".join(f"{one['label']} {one['AP']:.2f}" for one in classes)


def _other_row(metrics: dict[str, Any]) -> str:
    epoch = f", of epoch {metrics['epoch']}" if "epoch" in metrics else ""
    return f"mAP {_number(metrics['mAP'])}, accuracy {_number(metrics['accuracy'])}{epoch}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
