"""Cross-validation over the folds of a data set: one run for each held-out fold.

In: a recipe and a data set with folds; then the folds' finished runs. Steps: make a recipe and a
run folder for each fold; collect the runs' scores after each epoch. Out: a table, and
`cross_validation.json`: each fold, mean and standard deviation, after the last epoch and after the
epoch with the best mean. The authors' script picks AST's scores on ESC-50 in the latter way, on the
very clips that are reported, which flatters them; so it is labelled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rich.table import Table

from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset, open_dataset
from pipeline.errors import UserError
from trainer.recipe.parse import load_recipe
from trainer.recipe.recipe import Recipe
from trainer.run.history import is_finished, read_history
from trainer.run.run_folder import check_folder, check_same_run
from trainer.studies.shared import (
    Figures,
    NotScored,
    cells_without_scores,
    figures_over_runs,
    refuse_override,
    runs_to_json,
    table_cells,
)

FIGURES = ("accuracy", "mAP")
PICKED_BY = "the best mean over the folds, which is a choice made on the test clips"
PICKED_BY_ONE = "the best score of the one fold, which is a choice made on the test clips"


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossValidation:
    """Scores of the fold that each run held out."""

    metric: str
    """Metric that picks the epoch."""
    folds: dict[int, list[Figures]]
    """Scores of each fold after every epoch; all have the same number of epochs."""
    diverged: list[int] = field(default_factory=list)
    """Folds whose runs diverged, and have no scores."""
    failed: list[int] = field(default_factory=list)
    """Folds whose runs failed otherwise."""

    @property
    def num_epochs(self) -> int:
        """Epochs of each run."""
        return min(map(len, self.folds.values()))

    @property
    def picked_epoch(self) -> int:
        """The epoch with the best mean over the folds (the first, if tied), counted from 1."""
        means = [
            self.after(epoch).mean[self.metric] or 0.0 for epoch in range(1, self.num_epochs + 1)
        ]
        return means.index(max(means)) + 1

    @property
    def last(self) -> "EpochScores":
        """Scores after the last epoch."""
        return self.after(self.num_epochs)

    @property
    def picked(self) -> "EpochScores":
        """Scores after the picked epoch."""
        picked_by = PICKED_BY if len(self.folds) > 1 else PICKED_BY_ONE
        return replace(self.after(self.picked_epoch), picked_by=picked_by)

    def after(self, epoch: int) -> "EpochScores":
        """Scores of each fold after an epoch, their mean and their standard deviation."""
        folds = {str(fold): curve[epoch - 1] for fold, curve in self.folds.items()}
        mean, std = figures_over_runs(list(folds.values()))
        return EpochScores(epoch=epoch, folds=folds, mean=mean, std=std)


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochScores:
    """Scores after an epoch."""

    picked_by: str | None = None
    """How the epoch was picked; None for the last one."""
    epoch: int
    folds: dict[str, Figures]
    mean: Figures
    std: Figures

    def to_json(self) -> dict[str, Any]:
        """The entry of `cross_validation.json`."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldPlan:
    """Recipes of folds by their run folders."""

    recipes: dict[str, Recipe]
    """Of the requested folds."""
    scored: dict[str, Recipe]
    """Of the requested folds and of those whose runs are already finished."""
    left_out: list[str]
    """Run folders of the data set's other folds."""


def plan_folds(
    recipe_path: str, overrides: Sequence[str], data_path: str, output: str, folds: Sequence[int]
) -> FoldPlan:
    """What to train and to score; no `folds`: all of them.

    Raises:
        UserError: as `load_recipe`, `open_dataset`, `fold_recipes` and `with_finished`; an override
            sets the fold; the output folder holds something else.
    """
    refuse_override(overrides, "data.fold", "--folds")
    check_folder(output, "cross_validation.json")
    recipe, dataset = load_recipe(recipe_path, overrides), open_dataset(data_path)
    recipes = fold_recipes(recipe, dataset, output, folds)
    all_recipes = fold_recipes(recipe, dataset, output, ())
    scored = with_finished(recipes, all_recipes, dataset)
    return FoldPlan(
        recipes=recipes, scored=scored, left_out=[run for run in all_recipes if run not in scored]
    )


def fold_recipes(
    recipe: Recipe, dataset: PreparedDataset, output: str, folds: Sequence[int]
) -> dict[str, Recipe]:
    """The recipe of each fold by its run folder; no `folds`: all of them.

    Raises:
        UserError: the data set lacks the split or the folds, or one is named twice.
    """
    split = recipe.data.train_split
    present = set(dataset.folds(split))
    known = sorted(present - {0, *recipe.data.unused_folds})
    if not known:
        raise UserError(
            dataset.path,
            f"the clips of split {split!r} have no folds",
            "`manifest --folds 5` assigns them",
        )
    wanted = list(folds) or known
    if len(set(wanted)) < len(wanted) or not set(wanted) <= set(known):
        raise UserError(
            "--folds",
            f"must be some of {' '.join(map(str, known))}, each named once, got "
            f"{' '.join(map(str, wanted))}",
        )
    return {
        storage.join(output, f"fold-{fold}"): replace(recipe, data=replace(recipe.data, fold=fold))
        for fold in wanted
    }


def with_finished(
    requested: Mapping[str, Recipe], all_recipes: Mapping[str, Recipe], dataset: PreparedDataset
) -> dict[str, Recipe]:
    """Recipes of the requested folds, and of those whose runs are already finished.

    Raises:
        UserError: the run of another fold has other settings or data, so one table cannot hold
            both.
    """
    return {
        path: recipe
        for path, recipe in all_recipes.items()
        if path in requested or (check_same_run(path, recipe, dataset) and is_finished(path))
    }


def score_folds(
    recipes: Mapping[str, Recipe], output: str, not_scored: NotScored | None = None
) -> CrossValidation:
    """Read the finished runs of `fold_recipes` and write `cross_validation.json` to `output`.

    `not_scored`: those of these runs that have no scores.

    Raises:
        UserError: a run's curves are damaged.
    """
    not_scored = not_scored or NotScored()
    scored = [path for path in recipes if path not in not_scored.runs]
    losses = {recipe.train.loss for recipe in recipes.values()}
    result = CrossValidation(
        metric="accuracy" if losses == {"ce"} else "mAP",
        folds={recipes[path].data.fold: _read_curve(path) for path in scored},
        diverged=[recipes[path].data.fold for path in not_scored.diverged],
        failed=[recipes[path].data.fold for path in not_scored.failed],
    )
    document = {
        "runs": runs_to_json(scored, output),
        "diverged": runs_to_json(not_scored.diverged, output),
        "failed": [asdict(one) for one in not_scored.failed_to_json(output)],
        "metric": result.metric,
        "last_epoch": result.last.to_json(),
        "picked_epoch": result.picked.to_json(),
    }
    storage.write_json(storage.join(output, "cross_validation.json"), document)
    return result


def make_table(result: CrossValidation) -> Table:
    """Scores of each fold, mean and standard deviation, after the last and the picked epoch."""
    last, picked = result.last, result.picked
    table = Table(
        title=f"Cross-validation over {len(result.folds)} fold{'s' * (len(result.folds) > 1)}",
        caption=f"Picked: epoch {picked.epoch}, {picked.picked_by}.",
    )
    table.add_column("held out")
    for epoch in (f"epoch {last.epoch} (last)", f"epoch {picked.epoch} (picked)"):
        for name in FIGURES:
            table.add_column(f"{name}\n{epoch}", justify="right")
    for fold in result.folds:
        of_last, of_picked = (table_cells(scores.folds[str(fold)]) for scores in (last, picked))
        table.add_row(f"fold {fold}", *of_last, *of_picked)
    for state, folds in (("diverged", result.diverged), ("failed", result.failed)):
        for fold in folds:
            table.add_row(f"fold {fold}", *cells_without_scores(state, 2 * len(FIGURES)))
    table.add_section()
    table.add_row("mean", *table_cells(last.mean), *table_cells(picked.mean))
    table.add_row("standard deviation", *table_cells(last.std), *table_cells(picked.std))
    return table


def _read_curve(run_path: str) -> list[Figures]:
    """A finished run's scores after each epoch."""
    results = read_history(run_path).epochs
    if not results:
        raise UserError(f"{run_path}/history.json", "has no scores", "remove it and train again")
    return [{name: getattr(result, name) for name in FIGURES} for result in results]
