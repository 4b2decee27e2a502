"""Ensembles for the report.

In: folders with an `ensemble.json`. Out: a row of scores for each clip set that an ensemble was
scored on, and how its members were chosen.
"""

from collections.abc import Sequence
from pathlib import PurePosixPath

from pipeline import storage
from trainer.report.runs import Row, run_names
from trainer.scores.metrics import METRICS
from trainer.scores.predictions import read_metrics
from trainer.studies.ensemble.result import FILE, EnsembleResult, read_result


def read_ensembles(folders: Sequence[str]) -> list[Row]:
    """Title, clip set and scores of each ensemble, a row for each clip set.

    Raises:
        UserError: a file of an ensemble is damaged.
    """
    rows = []
    for title, folder, result in _results(folders):
        chosen = " (chosen)" if result.choice else ""
        rows.append(_row(f"{title}{chosen}", result.name, result.ensemble))
        if result.all is not None:
            rows.append(_row(f"{title}, all members once", result.name, result.all))
        rows += [_row(one.name, result.name, one.scores) for one in result.paper]
        if result.choice is not None:
            rows.append(_row(f"{title}{chosen}", result.choice.name, result.choice.ensemble))
            rows.append(_row(f"{title}, all members once", result.choice.name, result.choice.all))
        for file in storage.list_files(storage.join(folder, "predictions")):
            name = PurePosixPath(file).stem
            if file.endswith(".json") and name != result.name:
                metrics = read_metrics(folder, name).metrics
                figures = {key: getattr(metrics, key) for key in METRICS}
                rows.append(_row(f"{title}{chosen}", name, figures))
    return rows


def ensemble_notes(folders: Sequence[str]) -> list[str]:
    """Sentences on how ensembles are averaged, and how their members were chosen.

    Raises:
        UserError: an `ensemble.json` is damaged.
    """
    notes = []
    for title, _, result in _results(folders):
        if result.average != "scores":
            notes.append(f"{title} averages the {result.average} of its members.")
        if (choice := result.choice) is not None:
            counts = ", ".join(f"{name} {count}×" for name, count in result.counts.items() if count)
            num_picks = sum(result.counts.values())
            notes.append(
                f"{title}: members chosen on {choice.name} by {choice.metric}, in {num_picks} "
                f"pick{'s' * (num_picks > 1)} with replacement: {counts}."
            )
    return notes


def _results(folders: Sequence[str]) -> list[tuple[str, str, EnsembleResult]]:
    """Title, folder and result of each ensemble."""
    scored = [folder for folder in folders if storage.exists(storage.join(folder, FILE))]
    return [
        (
            f"Ensemble {name}" if len(scored) > 1 else "Ensemble",
            folder,
            read_result(storage.join(folder, FILE)),
        )
        for folder, name in zip(scored, run_names(scored), strict=True)
    ]


def _row(title: str, on: str, figures: Row) -> Row:
    return {"title": title, "on": on, "metrics": figures}
