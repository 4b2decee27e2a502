"""The table of a run's results that `train` and `evaluate` print at the end."""

from typing import get_args

from rich.console import Group
from rich.table import Table

from pipeline import storage
from pipeline.terminal.tables import name_value_table, titled
from pipeline.terminal.units import counted
from trainer.checkpoints.settings import Weights
from trainer.run.history import read_history
from trainer.run.skipped_steps import read_bad_steps
from trainer.scores.metrics import METRICS, Metrics
from trainer.scores.predictions import ScoredClips, predictions_name, predictions_path, read_metrics

_NUM_SHOWN = 5
_NUM_NAMED = 12
"""Most names of classes in a row."""


def result_table(run_path: str, name: str) -> Group:
    """The metrics of a run's predictions on a clip set, with the best and worst classes.

    Raises:
        UserError: the run has no such predictions, or one of its files is damaged.
    """
    scored = read_metrics(run_path, name)
    metrics, common = scored.metrics, scored.common
    table = name_value_table()
    if scored.source.weights:
        table.add_row("weights", scored.source.weights + _epoch(scored))
    if scored.source.loss == "ce":
        table.add_row("scores", f"{scored.source.score_function} outputs")
    table.add_row("clips", f"{metrics.num_clips:,}")
    if metrics.is_unlabelled:
        table.add_row("note", "no clip has a label, so no score is defined")
    table.add_row("mAP", _number(metrics.mAP) + _chance(metrics))
    for key in METRICS[1:]:
        table.add_row(key.replace("_", "-"), _number(getattr(metrics, key)))
    if common:
        table.add_row(
            "common subset", f"mAP {_number(common.mAP)} on {counted(common.num_clips, 'clip')}"
        )
    for weights in get_args(Weights)[1:]:
        other = predictions_name(name, weights)
        if storage.exists(predictions_path(run_path, other)):
            table.add_row(f"{weights} weights", _other_row(read_metrics(run_path, other)))
    if not metrics.is_unlabelled:
        _add_classes(table, metrics)
    history = read_history(run_path)
    if history.epochs:
        train_s = sum(epoch.train_s or 0 for epoch in history.epochs)
        table.add_row("training", f"epochs: {len(history.epochs)}, {train_s:,.0f} s")
    if num_skipped := len(read_bad_steps(run_path)):
        share = f"{num_skipped} of {counted(history.num_steps, 'step')}"
        table.add_row("skipped", f"{share}, see divergence.jsonl")
    return titled(f"{run_path} on {name}", table)


def _add_classes(table: Table, metrics: Metrics) -> None:
    """Name the classes without positives, and the best and worst of the others."""
    if left_out := [entry.label for entry in metrics.per_class if entry.AP is None]:
        more = f"; and {len(left_out) - _NUM_NAMED} more" if len(left_out) > _NUM_NAMED else ""
        names = "; ".join(left_out[:_NUM_NAMED])
        classes = counted(len(left_out), "class", "classes")
        table.add_row("left out", f"{classes} without positives: {names}{more}")
    by_class = [(entry.AP, entry.label) for entry in metrics.per_class if entry.AP is not None]
    ordered = sorted(by_class, key=lambda pair: -pair[0])
    if len(ordered) > 2 * _NUM_SHOWN:
        table.add_row(f"best {_NUM_SHOWN}", _classes(ordered[:_NUM_SHOWN]))
        table.add_row(f"worst {_NUM_SHOWN}", _classes(ordered[-_NUM_SHOWN:]))
    else:
        table.add_row("AP by class", _classes(ordered))


def _chance(metrics: Metrics) -> str:
    return "" if metrics.chance_mAP is None else f" (chance {metrics.chance_mAP:.4f})"


def _classes(classes: list[tuple[float, str]]) -> str:
    # Labels of AudioSet have commas in them.
    return "; ".join(f"{label} {precision:.2f}" for precision, label in classes)


def _other_row(scored: ScoredClips) -> str:
    metrics = scored.metrics
    return f"mAP {_number(metrics.mAP)}, accuracy {_number(metrics.accuracy)}{_epoch(scored)}"


def _epoch(scored: ScoredClips) -> str:
    return f", of epoch {scored.source.epoch}" if scored.source.epoch else ""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
