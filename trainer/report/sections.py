"""Run folders to one self-contained HTML page.

In: run folders, or those of ensembles and cross-validations, local or s3://, finished or not, and
the data set they name, if it can still be read. Steps: read what each run wrote; put numbers side
by side; draw figures (`figures`) and single clips (`examples`); render `page.html.jinja`. Out: one
file that needs no network. What is missing is said in the page in a sentence; only a folder that is
no run is an error, and a damaged file.

The page is a function of what was read: no clock, so the same runs give the same bytes.
"""

import itertools
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset, open_dataset
from pipeline.errors import UserError
from pipeline.pages import page
from pipeline.pages.plots import Plot, counts_plot, series_colour
from pipeline.terminal import units
from trainer.optim.settings import ScheduleSettings
from trainer.report import examples, figures
from trainer.run.run_folder import read_history, read_recipe, read_run
from trainer.run.skipped_steps import read_bad_steps
from trainer.scores.predictions import Predictions, predictions_path, read_metrics, read_predictions
from trainer.studies.shared import read_runs

_METRICS = (("mAP", "mAP"), ("mAUC", "mAUC"), ("d_prime", "d′"), ("accuracy", "Accuracy"))

_OF_TRAINING = {"augment", "sampler", "schedule", "optimiser", "averaging", "train"}
"""Sections whose settings, but for train.loss, say nothing of a model that was imported."""

_TEMPLATE = Path(__file__).with_name("page.html.jinja")

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What one run folder holds."""

    path: str
    name: str
    """Short, and unlike that of any other run of the page."""
    info: Row
    """run.json."""
    steps: list[Row]
    epochs: list[Row]
    is_finished: bool
    evaluations: dict[str, Row]
    """Metrics by the name of the predictions they are of."""
    bad_steps: list[Row]
    """Steps that were skipped."""

    @property
    def data(self) -> Row:
        """The `data` section of run.json."""
        return dict(self.info.get("data", {}))

    @property
    def main_evaluation(self) -> str | None:
        """The predictions that stand for the run: those on its own evaluation clips, if any."""
        wanted = [self.data.get("eval_name"), *self.evaluations]
        return next((name for name in wanted if name in self.evaluations), None)

    @property
    def final(self) -> Row:
        """Metrics of the last evaluation; of the last epoch, or none, where there is none."""
        if self.main_evaluation is not None:
            return self.evaluations[self.main_evaluation]
        return self.epochs[-1] if self.epochs else {}

    @property
    def all_evaluations(self) -> dict[str, Row]:
        """Metrics by what they are of: all predictions, and the mean of the epochs' scores."""
        found = {
            f"{name} (epoch {row['epoch']})" if row.get("epoch") else name: row
            for name, row in self.evaluations.items()
        }
        last = self.epochs[-1] if len(self.epochs) > 1 else {}
        mean = {key: last.get(f"cumulative_{key}") for key, _ in _METRICS}
        if mean["mAP"] is not None:
            name = f"{self.data.get('eval_name')}, mean of the scores of all epochs"
            found[name] = {"num_clips": self.data.get("num_eval_clips"), **mean}
        return found

    @property
    def train_s(self) -> float:
        """Seconds of training, without evaluation."""
        return math.fsum(entry.get("train_s") or 0 for entry in self.epochs)

    @property
    def history(self) -> figures.History:
        """The run's curves."""
        return figures.History(
            name=self.name,
            steps=self.steps,
            epochs=self.epochs,
            published=self.published,
            schedule=self._schedule,
        )

    def setting(self, section: str, key: str) -> str | None:
        """A setting as text, a dash if it came later than the run; None if it was of no effect."""
        if "imported_from" in self.info and section in _OF_TRAINING and key != "loss":
            return None
        settings = self.info.get("settings", {}).get(section, {})
        return _setting(settings[key]) if key in settings else "–"

    @property
    def _schedule(self) -> ScheduleSettings | None:
        try:
            return read_recipe(self.info).schedule
        except (UserError, LookupError):
            # Of an older run, whose settings are no longer known.
            return None

    @property
    def no_evaluation(self) -> str:
        """Why there are no predictions, and how to make them."""
        if not self.is_finished:
            return (
                "There are no predictions yet; they are written with the last evaluation, at the "
                "end of the run."
            )
        data = self.data
        fold = f" --fold {data['eval_fold']}" if data.get("eval_fold") else ""
        return (
            f"The run is finished, but its predictions on {data.get('eval_name')} are missing; "
            f"`evaluate {self.path} --split {data.get('eval_split')}{fold}` makes them."
        )

    @property
    def published(self) -> dict[str, list[float]]:
        """Scores after each epoch, by metric, that the recipe says are published."""
        return dict(self.info.get("settings", {}).get("published", {}))

    @property
    def published_epochs(self) -> list[Row]:
        """The same, epoch by epoch."""
        given = {key: values for key, values in self.published.items() if values}
        rows = itertools.zip_longest(*given.values())
        return [dict(zip(given, row, strict=True)) for row in rows]


def write_report(runs: list[str], *, output: str | None = None) -> str:
    """Write the report of one or more runs.

    Args:
        runs: run folders, local or s3://, or those of ensembles and cross-validations, which
            stand for their runs; the first one's examples and data set are shown.
        output: the page to write, a path that ends with .html; `report.html` in the first folder
            by default.

    Returns:
        The path of the page.

    Raises:
        UserError: no run was given, a folder is not one of a run, a file of it is damaged, or
            `output` is no place for a page.
    """
    if not runs:
        raise UserError("report", "no run was given", "name one or more run folders")
    if output and not output.endswith(".html"):
        raise UserError(
            "--out", f"{output}: must end with .html", "give the page a file of its own"
        )
    folders = list(dict.fromkeys(storage.absolute(path) for path in runs))
    paths = list(dict.fromkeys(itertools.chain.from_iterable(map(member_paths, folders))))
    loaded = [load_run(path, name) for path, name in zip(paths, run_names(paths), strict=True)]
    target = storage.absolute(output) if output else storage.join(folders[0], "report.html")
    sections = make_sections(loaded) | {"ensembles": read_ensembles(folders)}
    page.write_page(target, _TEMPLATE, sections, _plots(sections))
    return target


def member_paths(folder: str) -> list[str]:
    """The runs that a folder stands for: itself, or those of an ensemble or a cross-validation."""
    if storage.exists(storage.join(folder, "run.json")):
        return [folder]
    results = [storage.join(folder, f"{name}.json") for name in ("ensemble", "cross_validation")]
    if scored := list(dict.fromkeys(itertools.chain.from_iterable(map(read_runs, results)))):
        return scored
    # Not scored yet.
    found = storage.list_files(folder)
    runs = [path.removesuffix("/run.json") for path in found if path.endswith("/run.json")]
    return [run for run in runs if run.rpartition("/")[0] == folder] or [folder]


def read_ensembles(folders: Sequence[str]) -> list[Row]:
    """What the `ensemble.json` of each folder that has one says of the members' mean scores.

    Raises:
        UserError: such a file is damaged.
    """
    scored = [one for one in folders if storage.exists(storage.join(one, "ensemble.json"))]
    ensembles = []
    for folder, name in zip(scored, run_names(scored), strict=True):
        path = storage.join(folder, "ensemble.json")
        title = f"Ensemble {name}" if len(scored) > 1 else "Ensemble"
        try:
            document = storage.read_json(path)
            metrics = dict(document["ensemble"])
            ensembles.append({"title": title, "on": document["name"], "metrics": metrics})
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(
                path, "damaged", "the command of the ensemble makes it again"
            ) from error
    return ensembles


def load_run(path: str, name: str) -> Run:
    """Read a run folder, except for its checkpoints and predictions.

    Raises:
        UserError: it is not the folder of a run, or a file of it is damaged.
    """
    info, history = read_run(path), read_history(path)
    files = storage.list_files(storage.join(path, "predictions"))
    names = [PurePosixPath(file).stem for file in files if file.endswith(".json")]
    evaluations = {evaluation: read_metrics(path, evaluation) for evaluation in names}
    return Run(
        path=path,
        name=name,
        info=info,
        steps=history["steps"],
        epochs=history["epochs"],
        is_finished=bool(history["finished"]),
        evaluations=evaluations,
        bad_steps=read_bad_steps(path),
    )


def run_names(paths: Sequence[str]) -> list[str]:
    """The last parts of each path, as many as tell the runs apart."""
    parts = [path.removeprefix("s3://").strip("/").split("/") for path in paths]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{part[-1]} ({number})" for number, part in enumerate(parts, start=1)]


def make_sections(runs: Sequence[Run]) -> Row:
    """What the page says of these runs, by the names in its template."""
    dataset, data_problem = _open(runs[0])
    first = _predictions(runs[0])
    # One after the other: the scores of all runs need not fit into memory together.
    scored = itertools.chain([first], map(_predictions, runs[1:]))
    return {
        "runs": [{"run": run, "colour": series_colour(number)} for number, run in enumerate(runs)],
        "recipes": ", ".join(dict.fromkeys(str(run.info.get("recipe", "run")) for run in runs)),
        "tiles": make_tiles(runs),
        "metrics": _METRICS,
        "have_one_mean": have_one_mean(runs),
        "summary": summarise(runs),
        "differences": [row for row in settings_rows(runs) if row["differs"]],
        "settings": settings_rows(runs),
        "num_seeds": len({run.info.get("seed") for run in runs}),
        "versions": _table(runs, "versions"),
        "published": {str(run.info.get("recipe")): run.published_epochs for run in runs},
        "curves": figures.history_plots([run.history for run in runs]),
        "classes": class_section(runs),
        "confusions": examples.confusion_section([run.name for run in runs], scored),
        "examples": examples.example_section(
            runs[0].name, first, dataset, data_problem if first else runs[0].no_evaluation
        ),
        "data": data_section(runs, dataset, data_problem),
        "durations": duration_section(runs, dataset),
    }


def make_tiles(runs: Sequence[Run]) -> list[Row]:
    """The headline numbers: label, value, and what to read it by."""
    tiles: list[Row] = []
    for key, title in _METRICS:
        mean, spread = _over_runs(runs, key)
        chance, _ = _over_runs(runs, "chance_mAP")
        details = [f"± {units.number(spread)} in {len(runs)} runs"] if spread is not None else []
        if key == "mAP" and chance is not None:
            details.append(f"chance {units.number(chance)}")
        tiles.append({"label": title, "value": units.number(mean), "details": details})
    total_s = math.fsum(run.train_s for run in runs)
    num_skipped = sum(len(run.bad_steps) for run in runs)
    return [
        *tiles,
        {
            "label": "Training clips",
            "value": _counts([run.data.get("num_train_clips") for run in runs]),
            "details": [
                f"{_counts([run.data.get('num_eval_clips') for run in runs])} for evaluation"
            ],
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
            "value": units.duration(total_s / len(runs)),
            "details": [f"mean of {len(runs)} runs"] if len(runs) > 1 else ["without evaluation"],
        },
    ]


def have_one_mean(runs: Sequence[Run]) -> bool:
    """Whether all are scored on one split of one data set, be it on several folds of it."""
    if len(runs) == 1:
        return True
    are_own = all(run.main_evaluation in (None, run.data.get("eval_name")) for run in runs)
    return are_own and (
        len({(run.data.get("fingerprint"), run.data.get("eval_split")) for run in runs}) == 1
    )


def _over_runs(runs: Sequence[Run], key: str) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation of a final metric, where they say something."""
    if not have_one_mean(runs):
        return None, None
    return _mean_and_spread([run.final.get(key) for run in runs])


def _counts(values: Sequence[int | None]) -> str:
    """The count that all have, or the smallest and the largest."""
    known = [value for value in values if value is not None]
    if not known:
        return units.count(None)
    return "–".join(dict.fromkeys(units.count(end) for end in (min(known), max(known))))


def summarise(runs: Sequence[Run]) -> dict[str, Row]:
    """Mean and sample standard deviation over the runs, by metric."""
    summary = {}
    for key, _ in _METRICS:
        mean, spread = _over_runs(runs, key)
        summary[key] = {"mean": mean, "spread": spread}
    return summary


def settings_rows(runs: Sequence[Run]) -> list[Row]:
    """Every setting: section, key, its value in each run, and whether these differ."""
    rows = []
    sections = dict.fromkeys(name for run in runs for name in run.info.get("settings", {}))
    for section in sections:
        settings = [run.info.get("settings", {}).get(section, {}) for run in runs]
        for key in dict.fromkeys(key for one in settings for key in one):
            values = [run.setting(section, key) for run in runs]
            differs = len(set(values) - {None}) > 1
            shown = ["–" if value is None else value for value in values]
            rows.append({"section": section, "key": key, "values": shown, "differs": differs})
    return rows


def class_section(runs: Sequence[Run]) -> Row:
    """Average precision per class over the runs that have the first one's classes."""
    tables = [(run, _by_label(run.final)) for run in runs if run.final.get("per_class")]
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
        "plot": figures.class_plot(scored, names) if scored else None,
        "rows": scored,
        "left_out": [row.label for row in rows if row.mean is None],
        "other_runs": [run.name for run in runs if run.name not in names],
    }


def data_section(runs: Sequence[Run], dataset: PreparedDataset | None, problem: str) -> Row:
    """What the first run was trained on, and which runs had something else."""
    data = runs[0].data
    others = [run for run in runs if run.data.get("fingerprint") != data.get("fingerprint")]
    section: Row = {"run": data, "other_runs": others, "problem": problem, "card": None}
    if dataset is None:
        return section
    card = dataset.card
    reasons = card.get("rejects", {}).get("by_reason", {})
    return section | {
        "card": card,
        "is_same": card.get("fingerprint") == data.get("fingerprint"),
        "rejects": sorted(reasons.items(), key=lambda item: (-item[1], item[0])),
        "splits": page.training_first(card.get("splits", {})),
        "plot": counts_plot(page.training_first(card["class_counts"]), dataset.labels),
    }


def duration_section(runs: Sequence[Run], dataset: PreparedDataset | None) -> Row:
    """Seconds of preparing the data, of training and of evaluation."""
    summary = None
    if dataset is not None:
        path = storage.join(dataset.path, "prepare_summary.json")
        summary = storage.read_json(path) if storage.exists(path) else None
    rows = [
        {
            "name": run.name,
            "num_epochs": len(run.epochs),
            "train_s": run.train_s,
            "eval_s": math.fsum(entry.get("eval_s") or 0 for entry in run.epochs),
            "clips_per_s": _mean_and_spread(
                [rate for step in run.steps if (rate := step.get("clips_per_s")) is not None]
            )[0],
        }
        for run in runs
    ]
    plot = figures.duration_plot([run.history for run in runs])
    return {"prepare": summary, "rows": rows, "plot": plot}


def _open(run: Run) -> tuple[PreparedDataset | None, str]:
    """The run's data set, or None and why it cannot be read."""
    path = run.data.get("path")
    if not path:
        return None, "The run does not say where its data set is."
    try:
        return open_dataset(path), ""
    except (UserError, OSError, ValueError) as error:
        return None, f"The data set cannot be read any more: {error}"
    except Exception as error:
        # A storage that is out of reach raises exceptions of its client's own.
        reason = storage.explain(error)
        if reason is None:
            raise
        return None, f"The data set {path} cannot be read any more: {reason[0]}"


def _predictions(run: Run) -> Predictions | None:
    """Those of the main evaluation, if they are there."""
    name = run.main_evaluation
    if name is None or not storage.exists(predictions_path(run.path, name)):
        return None
    return read_predictions(run.path, name)


def _by_label(metrics: Row) -> dict[str, Row]:
    return {str(entry["label"]): entry for entry in metrics["per_class"]}


def _class_row(label: str, tables: Sequence[tuple[Run, dict[str, Row]]]) -> figures.ClassRow:
    entries = [table[label] for _, table in tables]
    counts = [int(entry["num_positives"]) for entry in entries]
    shares = [
        count / max(1, int(run.final.get("num_clips") or 0))
        for count, (run, _) in zip(counts, tables, strict=True)
    ]
    return figures.ClassRow(
        label=label,
        positives=str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)}–{max(counts)}",
        chance=statistics.fmean(shares),
        values=tuple(entry["AP"] for entry in entries),
    )


def _table(runs: Sequence[Run], key: str) -> list[Row]:
    """One row per name in a flat section of run.json, with its value in each run."""
    names = dict.fromkeys(name for run in runs for name in run.info.get(key, {}))
    return [
        {"key": name, "values": [str(run.info.get(key, {}).get(name, "–")) for run in runs]}
        for name in names
    ]


def _plots(sections: Row) -> list[Plot | None]:
    """Every figure of the page."""
    names = ("classes", "confusions", "data", "durations")
    return [*sections["curves"], *(sections[name].get("plot") for name in names)]


def _mean_and_spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean, and the sample standard deviation of two or more; None where a value is missing."""
    defined = [value for value in values if value is not None]
    if not defined or len(defined) < len(values):
        return None, None
    return statistics.fmean(defined), statistics.stdev(defined) if len(defined) > 1 else None


def _setting(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
