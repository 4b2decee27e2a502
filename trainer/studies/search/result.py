"""The result of a search: scores of all runs, the best of them, and a table.

In: the plan, and the errors of runs that failed. Steps: read each run's curves; rank the finished
runs by the metric. Out: `search.json` with all of it, and a table for the terminal.

A run's scores are those of its last epoch; where the recipe keeps the best epoch's weights
(`train.select_by`), those of that epoch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rich.table import Table

from pipeline import storage
from pipeline.errors import UserError, last_line
from pipeline.terminal.units import counted
from trainer.checkpoints.progress import best_epoch
from trainer.run.history import is_finished, read_history
from trainer.run.skipped_steps import DivergedError
from trainer.scores.metrics import METRICS
from trainer.studies.search.plan import SearchPlan
from trainer.studies.search.record import SearchRecord, SearchRun, State, is_stopped, write_record
from trainer.studies.search.space import Space
from trainer.studies.shared import Figures

_RANKS: tuple[State, ...] = ("finished", "stopped", "waiting", "diverged", "failed")
_MAX_REASON_CHARS = 200


def score_search(plan: SearchPlan, errors: Mapping[str, BaseException]) -> SearchRecord:
    """Read all runs and write `search.json`.

    Args:
        plan: the search.
        errors: of runs that failed, by their folders.

    Raises:
        UserError: a run's curves are damaged.
    """
    runs = []
    for run in plan.record.trials:
        path = storage.join(plan.output, run.folder)
        runs.append(_scored(run, path, plan.record, errors.get(path)))
    best = _best(runs, plan.record.metric)
    edges = _edges(best, plan.space) if best else []
    record = replace(plan.record, trials=runs, best=best.number if best else None, edges=edges)
    write_record(plan.output, record)
    return record


def ranked(record: SearchRecord) -> list[SearchRun]:
    """The runs, best first: finished ones, then those stopped early, then all others."""

    def key(run: SearchRun) -> tuple[int, int, tuple[float, ...], int]:
        epochs = run.epochs if run.state == "stopped" else 0
        scores = _descending(run, record.metric)
        return _RANKS.index(run.state), -epochs, scores, run.number

    return sorted(record.trials, key=key)


def make_table(record: SearchRecord) -> Table:
    """All runs with their settings and scores, best first."""
    table = Table(title=title(record), caption=caption(record))
    table.add_column("run", justify="right")
    for setting in record.space:
        table.add_column(setting, justify="right", overflow="fold")
    names = score_names(record)
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("epochs", justify="right")
    table.add_column("state", overflow="fold")
    for run in ranked(record):
        style = "bold" if run.number == record.best else None
        table.add_row(
            str(run.number),
            *(show(run.settings[setting]) for setting in record.space),
            *(_number(run.scores.get(name)) for name in names),
            str(run.epochs),
            f"{run.state}: {run.reason}" if run.reason else run.state,
            style=style,
        )
    return table


def score_names(record: SearchRecord) -> list[str]:
    """The metric that chooses, and accuracy or mAP beside it."""
    return list(dict.fromkeys([record.metric, "accuracy", "mAP"]))


def title(record: SearchRecord) -> str:
    """What was searched."""
    return f"Search of {record.recipe}: {counted(len(record.trials), 'run')}, by {record.metric}"


def caption(record: SearchRecord) -> str:
    """On which clips it chose, and what that means for the scores."""
    text = f"Evaluated on {record.chosen_by}, by which the best was chosen"
    if record.are_reported:
        return f"{text}: the very clips to report, so its score there is too good."
    return f"{text}: on other clips it is likely to have a lower score."


def show(value: object) -> str:
    """A setting's value in a cell."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _scored(
    run: SearchRun, path: str, record: SearchRecord, error: BaseException | None
) -> SearchRun:
    epochs = read_history(path).epochs
    state, reason = run.state, run.reason
    if error is not None:
        state = "diverged" if isinstance(error, DivergedError) else "failed"
        reason = _reason(error)
    elif epochs and is_finished(path):
        state = "finished"
    elif is_stopped(path):
        state = "stopped"
    scores: Figures = {}
    scored_epoch = 0
    if epochs and state in ("finished", "stopped"):
        select_by = run.settings.get("train.select_by", record.settings["train"]["select_by"])
        result = best_epoch(epochs, select_by) if select_by else epochs[-1]
        scored_epoch = result.epoch
        scores = {name: getattr(result, name) for name in METRICS}
    return replace(
        run,
        state=state,
        reason=reason,
        epochs=len(epochs),
        scored_epoch=scored_epoch,
        scores=scores,
    )


def _reason(error: BaseException) -> str:
    text = error.what if isinstance(error, UserError) else last_line(error)
    return text if len(text) <= _MAX_REASON_CHARS else f"{text[:_MAX_REASON_CHARS]}…"


def _best(runs: Sequence[SearchRun], metric: str) -> SearchRun | None:
    """The finished run with the highest score, the first of those that are equal."""
    finished = [
        run for run in runs if run.state == "finished" and run.scores.get(metric) is not None
    ]
    return min(finished, key=lambda run: _descending(run, metric), default=None)


def _descending(run: SearchRun, metric: str) -> tuple[float, ...]:
    """What sorts runs by the metric, and those that are equal by accuracy and mAP."""
    scores = [run.scores.get(name) for name in (metric, "accuracy", "mAP")]
    return tuple(float("inf") if score is None else -score for score in scores)


def _edges(best: SearchRun, space: Space) -> list[str]:
    """Settings whose best value is at the edge of the range that was searched."""
    return [
        dimension.setting
        for dimension in space
        if dimension.is_edge(best.settings[dimension.setting])
    ]
