"""Ensembles: models of one data set whose scores are averaged.

In: a recipe, seeds and variants of it; then the finished runs. Steps: make a recipe and a run
folder for each member; average the members' scores on the same clips. Out: the mean as predictions,
a table, and `ensemble.json`.

An ensemble's scores are the mean of its members' sigmoid or softmax outputs (`train.scores`), with
the weights of their last checkpoints, not averaged ones (paper section 3.1; the authors'
`ensemble.py`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from pipeline import storage
from pipeline.errors import SettingValueError, UserError
from trainer.recipe.parse import load_recipe
from trainer.recipe.recipe import Recipe
from trainer.run.history import check_learned, read_history
from trainer.run.run_folder import check_folder, first_difference, read_run
from trainer.scores.metrics import METRICS, Metrics, evaluate_scores
from trainer.scores.predictions import (
    Predictions,
    Source,
    predictions_path,
    read_predictions,
    write_predictions,
)
from trainer.studies.shared import (
    Figures,
    diverged_cells,
    figures_over_runs,
    read_runs,
    refuse_override,
    runs_to_json,
    table_cells,
)

_VARIANT_NAME = re.compile(
    r"(?!seed-|tune$|predictions$)[A-Za-z0-9][A-Za-z0-9_.-]*(?<!\.json|\.html)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsemblePlan:
    """Members of an ensemble."""

    recipes: dict[str, Recipe]
    """Recipes of members to train, by their run folders."""
    runs: list[str]
    """Run folders of all members."""
    name: str
    """Name of the clip set to score them on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsembleResult:
    """Members and their ensemble on one clip set: the document `ensemble.json`."""

    format_version: Literal[1] = 1
    runs: list[str]
    """The members' run folders, relative to the ensemble's if inside it."""
    name: str
    """Name of the clip set."""
    diverged: list[str] = field(default_factory=list)
    """Run folders that would be members, had their training not diverged."""
    members: dict[str, Figures]
    """Scores of each member, by the name of its run."""
    mean: Figures
    std: Figures
    ensemble: Figures


def plan_ensemble(
    recipe_path: str | None,
    overrides: Sequence[str],
    output: str,
    *,
    data_path: str | None = None,
    seeds: Sequence[int] = (),
    variants: Sequence[Sequence[str]] = (),
    runs: Sequence[str] = (),
) -> EnsemblePlan:
    """Plan an ensemble of members to train (with a recipe and data), finished runs, or both.

    Args:
        overrides, seeds, variants: as for `member_recipes`.
        runs: finished runs to include.

    Raises:
        UserError: as `member_recipes` and `check_finished`; incompatible arguments; the output
            folder holds something else.
    """
    _check_members(
        recipe_path,
        {"--seeds": seeds, "--variant": variants, "--data": data_path, "--set": overrides},
        runs,
    )
    check_folder(output, "ensemble.json")
    recipes: dict[str, Recipe] = {}
    if recipe_path is None:
        name = read_run(runs[0]).data.eval_name
    else:
        recipes = member_recipes(recipe_path, overrides, output, seeds=seeds, variants=variants)
        name = next(iter(recipes.values())).data.eval_name
    check_finished(runs, name)
    return EnsemblePlan(recipes=recipes, runs=[*recipes, *runs], name=name)


def member_recipes(
    recipe_path: str,
    overrides: Sequence[str],
    output: str,
    *,
    seeds: Sequence[int] = (),
    variants: Sequence[Sequence[str]] = (),
) -> dict[str, Recipe]:
    """The recipe with each seed, and each variant of it, by its run folder.

    Args:
        overrides: settings of all members, `section.key=value`.
        variants: for each, its name and the settings in which it differs.

    Raises:
        UserError: as `load_recipe`; a seed is out of range; an override sets the seed, too; a name
            is no valid folder name; duplicate seeds or names.
    """
    if seeds:
        refuse_override(overrides, "train.seed", "--seeds")
    recipe = load_recipe(recipe_path, overrides)
    members: dict[str, Recipe] = {}
    for seed in seeds:
        _add(members, storage.join(output, f"seed-{seed}"), with_seed(recipe, seed), "--seeds")
    for name, *settings in variants:
        where = f"--variant {name}"
        if not _VARIANT_NAME.fullmatch(name):
            raise UserError(
                where,
                "must start with a name for its folder, of letters, digits, '.', '_' and '-', "
                "but not seed-..., tune or predictions",
                "then give its settings",
            )
        if not settings:
            raise UserError(where, "no settings", "add some after the name: train.epochs=10")
        try:
            variant = load_recipe(recipe_path, [*overrides, *settings])
        except UserError as error:
            setting = error.where.removeprefix("--set ")
            raise UserError(where, f"{setting}: {error.what}", error.remedy) from error
        _add(members, storage.join(output, name), variant, where)
    return members


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The same recipe with another seed.

    Raises:
        UserError: the seed is out of range.
    """
    try:
        return replace(recipe, train=replace(recipe.train, seed=seed))
    except SettingValueError as error:
        raise UserError("--seeds", str(error)) from error


def average_predictions(members: Mapping[str, Predictions]) -> Predictions:
    """The mean of the scores of members, by their names.

    Raises:
        UserError: the members differ in clips, labels or targets, or some scores are sigmoid
            outputs and others softmax outputs.
    """
    (first_name, first), *others = members.items()
    function = first.source.score_function
    for name, other in others:
        for aspect, equal, remedy in (
            ("clips", other.ids == first.ids, ""),
            ("labels", other.labels == first.labels, ""),
            ("targets", np.array_equal(other.targets, first.targets), ""),
            ("losses", other.source.loss == first.source.loss, ""),
            (
                f"scores ({function} and {other.source.score_function})",
                other.source.score_function == function,
                f"score {name} again: `evaluate --scores {function}`",
            ),
        ):
            if not equal:
                raise UserError(
                    "",
                    f"{first_name} and {name}: their predictions on {first.name!r} cannot be "
                    f"averaged, as they have different {aspect}",
                    remedy,
                )
    stacked = np.stack([member.scores for member in members.values()])
    mean: NDArray[np.float32] = stacked.mean(axis=0, dtype=np.float64).astype(np.float32)
    source = Source(loss=first.source.loss, scores=function, num_members=len(members))
    return replace(first, scores=mean, source=source)


def former_members(run_paths: Sequence[str], output: str) -> list[str]:
    """Members of an earlier result in `output`, if any, that are not among these runs."""
    former = read_runs(storage.join(output, "ensemble.json"))
    return [run for run in former if run not in run_paths]


def score_ensemble(
    run_paths: Sequence[str], name: str, output: str, diverged: Sequence[str] = ()
) -> EnsembleResult:
    """Average the runs' predictions on a clip set and write the result to `output`.

    Args:
        run_paths: the members.
        name: of the clip set.
        output: folder of the ensemble.
        diverged: runs that the result names, but does not score.

    Raises:
        UserError: a run lacks these predictions, or they cannot be averaged.
    """
    if len(set(run_paths)) < len(run_paths):
        raise UserError("", f"a run can be a member only once, got {' '.join(run_paths)}")
    names = [path.rpartition("/")[2] for path in run_paths]
    if len(set(names)) < len(names):
        names = list(run_paths)
    paths = dict(zip(names, run_paths, strict=True))
    members = {member: read_predictions(path, name) for member, path in paths.items()}
    average = average_predictions(members)
    scores = {name: _figures(_metrics(member)) for name, member in members.items()}
    metrics = _metrics(average)
    mean, std = figures_over_runs(list(scores.values()))
    result = EnsembleResult(
        runs=runs_to_json(run_paths, output),
        name=name,
        diverged=runs_to_json(diverged, output),
        members=scores,
        mean=mean,
        std=std,
        ensemble=_figures(metrics),
    )
    write_predictions(output, average, metrics)
    storage.write_json(storage.join(output, "ensemble.json"), asdict(result))
    return result


def read_result(path: str) -> EnsembleResult:
    """Read an `ensemble.json`.

    Raises:
        UserError: it is damaged.
    """
    remedy = "run the ensemble's command again"
    return storage.read_document(path, EnsembleResult, remedy)


def make_table(result: EnsembleResult) -> Table:
    """Scores of each member, their mean and standard deviation, and the ensemble's."""
    table = Table(title=f"Ensemble of {len(result.members)} on {result.name}")
    table.add_column("model")
    for name in METRICS:
        table.add_column(name, justify="right")
    for member, figures in result.members.items():
        table.add_row(member, *table_cells(figures))
    for run_path in result.diverged:
        table.add_row(run_path.rpartition("/")[2], *diverged_cells(len(METRICS)))
    table.add_section()
    table.add_row("mean", *table_cells(result.mean))
    table.add_row("standard deviation", *table_cells(result.std))
    table.add_section()
    ensemble = (f"[bold]{cell}" for cell in table_cells(result.ensemble))
    table.add_row("[bold]ensemble", *ensemble)
    return table


def check_finished(run_paths: Sequence[str], name: str) -> None:
    """Check, before others are trained, that runs can be members.

    Raises:
        UserError: a run does not exist, has other classes than the first, is not finished, has
            learned nothing, lacks predictions on the clip set, or one of its documents is damaged.
    """
    first: list[str] | None = None
    for path in run_paths:
        labels = read_run(path).data.labels
        first = first or labels
        if difference := first_difference(labels, first):
            raise UserError(
                path,
                f"not the classes of {run_paths[0]}: {difference}",
                "members of an ensemble must have the same classes in the same order",
            )
        if not read_history(path).finished:
            raise UserError(path, "the run is not finished", "train it to the end first")
        check_learned(path)
        if read_predictions(path, name).labels != labels:
            raise UserError(
                predictions_path(path, name),
                "has other classes than the run's run.json",
                "one of the two is of another run or damaged: write it again with `evaluate`",
            )


def _check_members(
    recipe_path: str | None, to_train: Mapping[str, object], runs: Sequence[str]
) -> None:
    """Reject incompatible arguments; `to_train` has the options for members to train."""
    if recipe_path is None:
        for option, value in to_train.items():
            if value:
                raise UserError(option, "is for members to train, which need a recipe")
        if not runs:
            raise UserError("ensemble", "name a recipe with --seeds or --variant, or --runs")
    elif not to_train["--data"]:
        raise UserError("--data", "name the prepared data set to train on")
    elif not (to_train["--seeds"] or to_train["--variant"]):
        raise UserError("ensemble", "name the members to train by --seeds or --variant")


def _add(members: dict[str, Recipe], run_path: str, recipe: Recipe, where: str) -> None:
    name = run_path.rpartition("/")[2]
    if run_path in members:
        raise UserError(where, f"{name} is named twice")
    for path, other in members.items():
        if other.to_json() == recipe.to_json():
            raise UserError(where, f"{name} is the same as {path.rpartition('/')[2]}")
        if other.data.evaluation != recipe.data.evaluation:
            raise UserError(
                where,
                f"{name} is evaluated on other clips than {path.rpartition('/')[2]}",
                "all must have the same data.eval_split and data.fold",
            )
    members[run_path] = recipe


def _metrics(predictions: Predictions) -> Metrics:
    return evaluate_scores(predictions.targets, predictions.scores, predictions.labels)


def _figures(metrics: Metrics) -> Figures:
    return {name: getattr(metrics, name) for name in METRICS}
