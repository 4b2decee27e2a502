"""What `train` and `evaluate` tell the user at the end, as tables for the terminal."""

from typing import Any

from rich.console import Group

from pipeline import storage
from pipeline.summary import facts_table, titled
from trainer.predictions import predictions_path
from trainer.run_folder import read_history

_NUM_SHOWN = 5


def metrics_summary(run_path: str, name: str) -> Group:
    """The metrics of a run's predictions on a clip set, with its best and worst classes."""
    path = predictions_path(run_path, name).removesuffix(".parquet") + ".json"
    metrics: dict[str, Any] = storage.read_json(path)
    table = facts_table()
    if "weights" in metrics:
        epoch = f", of epoch {metrics['epoch']}" if "epoch" in metrics else ""
        table.add_row("weights", metrics["weights"] + epoch)
    table.add_row("clips", f"{metrics['num_clips']:,}")
    table.add_row("mAP", f"{_number(metrics['mAP'])} (chance {_number(metrics['chance_mAP'])})")
    for key, title in (("mAUC", "mAUC"), ("d_prime", "d-prime"), ("accuracy", "accuracy")):
        table.add_row(title, _number(metrics[key]))
    if "common" in metrics:
        common = metrics["common"]
        table.add_row(
            "common subset", f"mAP {_number(common['mAP'])} on {common['num_clips']:,} clips"
        )
    if metrics["num_classes_left_out"]:
        table.add_row("left out", f"{metrics['num_classes_left_out']} classes without positives")
    scored = [one for one in metrics["per_class"] if one["AP"] is not None]
    ordered = sorted(scored, key=lambda one: -one["AP"])
    if len(ordered) > 2 * _NUM_SHOWN:
        table.add_row(f"best {_NUM_SHOWN}", _classes(ordered[:_NUM_SHOWN]))
        table.add_row(f"worst {_NUM_SHOWN}", _classes(ordered[-_NUM_SHOWN:]))
    else:
        table.add_row("AP by class", _classes(ordered))
    epochs = read_history(run_path)["epochs"]
    if epochs:
        train_s = sum(epoch["train_s"] for epoch in epochs)
        table.add_row("training", f"{len(epochs)} epochs, {train_s:,.0f} s")
    table.add_row("predictions", predictions_path(run_path, name))
    return titled(f"{run_path} on {name}", table)


def _classes(classes: list[dict[str, Any]]) -> str:
    return ", ".join(f"{one['label']} {one['AP']:.2f}" for one in classes)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
