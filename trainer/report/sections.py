"""Sections of the report, as plain data for its template.

In: runs, and the data set of the first, if it can still be read. Steps: compare numbers; draw
figures (`figures`) and example clips (`examples`). Out: data for `page.html.jinja`, with a sentence
for each part that is missing.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict

from pipeline import storage
from pipeline.dataset.prepare_summary import read_summary
from pipeline.dataset.prepared import PreparedDataset, open_dataset
from pipeline.errors import UserError
from pipeline.pages import page
from pipeline.pages.plots import counts_plot, series_colour
from pipeline.terminal import units
from trainer.report import examples, figures
from trainer.report.groups import Group, are_on_same_clips, differences, make_groups
from trainer.report.runs import ReportedRun, Row, Scores
from trainer.scores.metrics import ClassMetrics
from trainer.scores.over_runs import mean_and_deviation
from trainer.scores.predictions import Predictions, predictions_path, read_predictions


def make_sections(runs: Sequence[ReportedRun]) -> Row:
    """All sections, by their names in the template."""
    dataset, data_problem = _open(runs[0])
    first = _predictions(runs[0])
    groups = make_groups(runs)
    # Read lazily: the scores of all runs need not fit into memory together.
    scored = itertools.chain([first], map(_predictions, groups[0].runs[1:]))
    colours = {run.path: series_colour(number) for number, run in enumerate(runs)}
    return {
        "runs": [{"run": run, "colour": colours[run.path]} for run in runs],
        "recipes": ", ".join(dict.fromkeys(run.info.recipe for run in runs)),
        "tiles": make_tiles(groups[0]) if len(groups) == 1 else [],
        "groups": [
            {"group": group, "colours": [colours[run.path] for run in group.runs]}
            for group in groups
        ],
        "metrics": tuple(figures.METRIC_TITLES.items()),
        "functions": sorted({run.final.function for run in runs if run.final.function}),
        "are_on_same_clips": are_on_same_clips(runs),
        "differences": _differences(runs, groups),
        "settings": settings_rows(runs),
        "num_seeds": len({run.info.seed for run in runs}),
        "versions": _versions(runs),
        "published": {run.info.recipe: run.published_epochs for run in runs},
        "curves": figures.history_plots([run.curves for run in runs]),
        "classes": class_section(runs, is_comparison=len(groups) > 1),
        "confusions": examples.confusion_section([run.name for run in groups[0].runs], scored),
        "examples": examples.example_section(
            runs[0].name, first, dataset, data_problem if first else runs[0].no_evaluation
        ),
        "data": data_section(runs, dataset, data_problem),
        "durations": duration_section(runs, dataset),
    }


def _differences(runs: Sequence[ReportedRun], groups: Sequence[Group]) -> Row:
    """Settings that differ: a column for each group, or for each run of a single group."""
    if len(groups) > 1:
        return {"names": [group.name for group in groups], "rows": differences(groups)}
    rows = [row for row in settings_rows(runs) if row["differs"]]
    return {"names": [run.name for run in runs], "rows": rows}


def make_tiles(group: Group) -> list[Row]:
    """The headline numbers of runs that may be averaged: label, value and details."""
    runs, scores = group.runs, group.scores
    tiles: list[Row] = []
    for key, title in figures.METRIC_TITLES.items():
        spread, chance = scores[key].deviation, scores["chance_mAP"].mean
        details = [f"± {units.number(spread)} in {len(runs)} runs"] if spread is not None else []
        if key == "mAP" and chance is not None:
            details.append(f"chance {units.number(chance)}")
        tiles.append({"label": title, "value": units.number(scores[key].mean), "details": details})
    num_skipped = sum(len(run.bad_steps) for run in runs)
    return [
        *tiles,
        {
            "label": "Training clips",
            "value": _counts([run.data.num_train_clips for run in runs]),
            "details": [f"{_counts([run.data.num_eval_clips for run in runs])} for evaluation"],
        },
        {
            "label": "Epochs",
            "value": _counts([len(run.epochs) for run in runs]),
            "details": [
                *([] if all(run.is_finished for run in runs) else ["not finished"]),
                *(
                    [f"{units.count(num_skipped)} step{'s' * (num_skipped > 1)} skipped"]
                    if num_skipped
                    else []
                ),
            ],
        },
        {
            "label": "Training time",
            "value": units.duration(group.train_s),
            "details": [f"mean of {len(runs)} runs"] if len(runs) > 1 else ["without evaluation"],
        },
    ]


def _counts(values: Sequence[int | None]) -> str:
    """The count, or a range if the runs differ."""
    known = [value for value in values if value is not None]
    if not known:
        return units.count(None)
    return "–".join(dict.fromkeys(units.count(end) for end in (min(known), max(known))))


def settings_rows(runs: Sequence[ReportedRun]) -> list[Row]:
    """Every setting: section, key, its value in each run, and whether these differ."""
    rows = []
    sections = dict.fromkeys(name for run in runs for name in run.info.settings)
    for section in sections:
        settings = [run.info.settings.get(section, {}) for run in runs]
        for key in dict.fromkeys(itertools.chain.from_iterable(settings)):
            values = [run.setting(section, key) for run in runs]
            differs = len(set(values) - {None}) > 1
            shown = ["–" if value is None else value for value in values]
            rows.append({"section": section, "key": key, "values": shown, "differs": differs})
    return rows


def class_section(runs: Sequence[ReportedRun], *, is_comparison: bool) -> Row:
    """Average precision per class, in the runs with the same classes as the first.

    `is_comparison`: show that of each run rather than their mean.
    """
    tables = [(run, _by_label(run.final)) for run in runs if run.final.per_class]
    if not tables:
        reason = runs[0].no_evaluation
        return {"plot": None, "rows": [], "left_out": [], "other_runs": [], "reason": reason}
    labels = list(tables[0][1])
    same = [(run, table) for run, table in tables if list(table) == labels]
    rows = [_class_row(label, same) for label in labels]
    scored = sorted(
        (row for row in rows if row.mean is not None), key=lambda row: -(row.mean or 0.0)
    )
    names = [run.name for run, _ in same]
    return {
        "plot": figures.class_plot(scored, names, is_comparison=is_comparison) if scored else None,
        "names": names if is_comparison else [],
        "rows": scored,
        "left_out": [row.label for row in rows if row.mean is None],
        "other_runs": [run.name for run in runs if run.name not in names],
        "reason": "No evaluated clip has a label, so no class has an average precision.",
    }


def data_section(runs: Sequence[ReportedRun], dataset: PreparedDataset | None, problem: str) -> Row:
    """The first run's data set, and the runs with another."""
    data = runs[0].data
    others = [run for run in runs if run.data.fingerprint != data.fingerprint]
    section: Row = {"run": data, "other_runs": others, "problem": problem, "card": None}
    if dataset is None:
        return section
    card = dataset.card
    reasons = card.rejects.by_reason
    return section | {
        "card": card,
        "fbank": asdict(card.fbank),
        "is_same": card.fingerprint == data.fingerprint,
        "rejects": sorted(reasons.items(), key=lambda item: (-item[1], item[0])),
        "splits": page.training_first(card.splits),
        "plot": counts_plot(page.training_first(card.class_counts), dataset.labels),
    }


def duration_section(runs: Sequence[ReportedRun], dataset: PreparedDataset | None) -> Row:
    """Seconds of data preparation, training and evaluation."""
    summary = None if dataset is None else read_summary(dataset.path)
    rows = [
        {
            "name": run.name,
            "num_epochs": len(run.epochs),
            "train_s": run.train_s,
            "eval_s": math.fsum(epoch.eval_s or 0 for epoch in run.epochs),
            "clips_per_s": mean_and_deviation(
                [rate for step in run.steps if (rate := step.clips_per_s) is not None]
            )[0],
        }
        for run in runs
    ]
    plot = figures.duration_plot([run.curves for run in runs])
    return {"prepare": summary, "rows": rows, "plot": plot}


def _open(run: ReportedRun) -> tuple[PreparedDataset | None, str]:
    """The run's data set, or None and why it cannot be read."""
    try:
        return open_dataset(run.data.path), ""
    except (UserError, OSError, ValueError) as error:
        return None, f"The data set can no longer be read: {error}"
    except Exception as error:
        # An unreachable storage raises its client's exceptions.
        reason = storage.explain(error)
        if reason is None:
            raise
        return None, f"The data set {run.data.path} can no longer be read: {reason[0]}"


def _predictions(run: ReportedRun) -> Predictions | None:
    """Predictions of the main evaluation, if there are any."""
    name = run.main_evaluation
    if name is None or not storage.exists(predictions_path(run.path, name)):
        return None
    return read_predictions(run.path, name)


def _by_label(scores: Scores) -> dict[str, ClassMetrics]:
    return {entry.label: entry for entry in scores.per_class}


def _class_row(
    label: str, tables: Sequence[tuple[ReportedRun, dict[str, ClassMetrics]]]
) -> figures.ClassRow:
    entries = [table[label] for _, table in tables]
    counts = [entry.num_positives for entry in entries]
    shares = [
        count / max(1, run.final.num_clips or 0)
        for count, (run, _) in zip(counts, tables, strict=True)
    ]
    return figures.ClassRow(
        label=label,
        positives=str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)}–{max(counts)}",
        chance=statistics.fmean(shares),
        values=tuple(entry.AP for entry in entries),
    )


def _versions(runs: Sequence[ReportedRun]) -> list[Row]:
    """A row for each package, with its version in each run."""
    names = dict.fromkeys(name for run in runs for name in run.info.versions)
    return [
        {"key": name, "values": [run.info.versions.get(name, "–") for run in runs]}
        for name in names
    ]
