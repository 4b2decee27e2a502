"""The runs of an ensemble: those to train, and finished ones.

In: a recipe, seeds and variants of it, and finished runs. Out: a recipe and a run folder for each
run to train; an error for runs that cannot be members of one ensemble.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline import storage
from pipeline.errors import SettingValueError, UserError
from trainer.recipe.parse import load_recipe
from trainer.recipe.recipe import Recipe
from trainer.run.history import check_learned, read_history
from trainer.run.run_folder import check_folder, first_difference, held_out, read_run
from trainer.scores.predictions import predictions_path, read_predictions
from trainer.studies.ensemble.result import FILE
from trainer.studies.shared import refuse_override

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
    """Name of the clips that they hold out."""

    def held_out(self) -> tuple[str, int]:
        """Split and fold that they hold out; fold 0: the whole split.

        Raises:
            UserError: an older run's settings cannot be read.
        """
        for recipe in self.recipes.values():
            return recipe.data.evaluation
        return held_out(self.runs[0], read_run(self.runs[0]))


def plan_ensemble(
    recipe_path: str | None,
    overrides: Sequence[str],
    output: str,
    *,
    data_path: str | None = None,
    seeds: Sequence[int] = (),
    variants: Sequence[Sequence[str]] = (),
    runs: Sequence[str] = (),
    are_scored: bool = True,
) -> EnsemblePlan:
    """Plan an ensemble of members to train (with a recipe and data), finished runs, or both.

    Args:
        overrides, seeds, variants: as for `member_recipes`.
        runs: finished runs to include.
        are_scored: whether these must have predictions on what the members hold out.

    Raises:
        UserError: as `member_recipes` and `check_finished`; incompatible arguments; the output
            folder holds something else.
    """
    _check_members(
        recipe_path, {"--seeds": seeds, "--variant": variants, "--set": overrides}, runs, data_path
    )
    check_folder(output, FILE)
    recipes: dict[str, Recipe] = {}
    if recipe_path is None:
        name = read_run(runs[0]).data.eval_name
    else:
        recipes = member_recipes(recipe_path, overrides, output, seeds=seeds, variants=variants)
        name = next(iter(recipes.values())).data.eval_name
    check_finished(runs, name if are_scored else None)
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


def check_finished(run_paths: Sequence[str], name: str | None) -> None:
    """Check, before others are trained, that runs can be members.

    Args:
        run_paths: the runs.
        name: of the predictions that they must have; None: they need not have any.

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
        if name is not None and read_predictions(path, name).labels != labels:
            raise UserError(
                predictions_path(path, name),
                "has other classes than the run's run.json",
                "one of the two is of another run or damaged: write it again with `evaluate`",
            )


def _check_members(
    recipe_path: str | None,
    to_train: Mapping[str, object],
    runs: Sequence[str],
    data_path: str | None,
) -> None:
    """Reject incompatible arguments; `to_train` has the options for members to train."""
    if recipe_path is None:
        for option, value in to_train.items():
            if value:
                raise UserError(option, "is for members to train, which need a recipe")
        if not runs:
            raise UserError("ensemble", "name a recipe with --seeds or --variant, or --runs")
    elif not data_path:
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
