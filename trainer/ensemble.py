"""Averages of several models' scores, and the table that sets them against their members.

An ensemble's score is the mean of its members' sigmoid (or softmax) outputs at their last, not
weight-averaged, checkpoints (paper section 3.1; the authors' `ensemble.py`).
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from pipeline import storage
from pipeline.errors import UserError
from trainer.metrics import Metrics, evaluate_scores
from trainer.predictions import Predictions, read_predictions, write_predictions

FIGURES = ("mAP", "mAUC", "d_prime", "accuracy")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EnsembleResult:
    """Members and their ensemble on one clip set."""

    members: dict[str, Metrics]
    """Metrics of each member, by the name of its run."""
    ensemble: Metrics
    name: str
    """The clip set."""


def average_predictions(members: Sequence[Predictions]) -> Predictions:
    """The mean of the members' scores.

    Raises:
        UserError: the members were not scored on the same clips with the same labels.
    """
    first = members[0]
    for other in members[1:]:
        if (other.ids, other.labels) != (first.ids, first.labels):
            raise UserError(
                f"predictions on {first.name!r} cannot be averaged: the runs were evaluated on "
                f"different clips or labels"
            )
    stacked = np.stack([one.scores for one in members])
    mean: NDArray[np.float32] = stacked.mean(axis=0, dtype=np.float64).astype(np.float32)
    facts = {"loss": first.facts["loss"], "num_members": len(members)}
    return replace(first, scores=mean, facts=facts)


def score_ensemble(run_paths: Sequence[str], name: str, output: str) -> EnsembleResult:
    """Average the runs' predictions on a clip set and write the result to `output`.

    Raises:
        UserError: a run lacks these predictions, or they do not fit together.
    """
    members = [read_predictions(path, name) for path in run_paths]
    average = average_predictions(members)
    result = EnsembleResult(
        members={
            path.rpartition("/")[2]: _metrics(one)
            for path, one in zip(run_paths, members, strict=True)
        },
        ensemble=_metrics(average),
        name=name,
    )
    write_predictions(output, average, result.ensemble)
    storage.write_json(storage.join(output, "ensemble.json"), to_json(result))
    return result


def to_json(result: EnsembleResult) -> dict[str, Any]:
    """The table's numbers."""
    members = {member: _figures(metrics) for member, metrics in result.members.items()}
    return {
        "name": result.name,
        "members": members,
        "mean": _over(members, statistics.fmean),
        "std": _over(members, _deviation),
        "ensemble": _figures(result.ensemble),
    }


def make_table(result: EnsembleResult) -> Table:
    """Each member, their mean and standard deviation, and the ensemble."""
    numbers = to_json(result)
    table = Table(title=f"Ensemble of {len(result.members)} on {result.name}")
    table.add_column("model")
    for name in FIGURES:
        table.add_column(name, justify="right")
    for member, figures in numbers["members"].items():
        table.add_row(member, *_cells(figures))
    table.add_section()
    table.add_row("mean", *_cells(numbers["mean"]))
    table.add_row("standard deviation", *_cells(numbers["std"]))
    table.add_section()
    table.add_row("[bold]ensemble", *(f"[bold]{cell}" for cell in _cells(numbers["ensemble"])))
    return table


def _metrics(predictions: Predictions) -> Metrics:
    return evaluate_scores(predictions.targets, predictions.scores, predictions.labels)


def _figures(metrics: Metrics) -> dict[str, float | None]:
    return {name: getattr(metrics, name) for name in FIGURES}


def _over(members: dict[str, dict[str, float | None]], statistic: Any) -> dict[str, float | None]:
    """A statistic of each figure over the members; None where a member has none."""
    result = {}
    for name in FIGURES:
        values = [figures[name] for figures in members.values()]
        result[name] = None if None in values else float(statistic(values))
    return result


def _deviation(values: list[float]) -> float:
    """Sample standard deviation; 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _cells(figures: dict[str, float | None]) -> list[str]:
    return ["-" if figures[name] is None else f"{figures[name]:.4f}" for name in FIGURES]
