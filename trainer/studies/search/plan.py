"""Plans a search: the clips to choose by, the settings of each run, and which runs to train.

In: a recipe, a data set, and the options of the step. Steps: check all that can be known before Ray
starts; draw the settings; take over the runs of the same search in the folder. Out: a `SearchPlan`,
and `search.json` with all its runs.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset, open_dataset
from pipeline.errors import UserError
from trainer.data.clips import TrainingData, select_training_data
from trainer.recipe.fit import check_rate
from trainer.recipe.model_fit import check_fit
from trainer.recipe.parse import load_recipe
from trainer.recipe.recipe import Recipe
from trainer.recipe.settings import PublishedSettings
from trainer.run.history import check_learned, is_finished
from trainer.run.run_folder import check_folder
from trainer.run.skipped_steps import DivergedError
from trainer.studies.search.clips import ChosenClips, choose_clips
from trainer.studies.search.draws import draw, grid, num_combinations
from trainer.studies.search.record import (
    RESULT,
    AshaSettings,
    Metric,
    SearchRecord,
    SearchRun,
    Strategy,
    check_same_search,
    is_stopped,
    read_record,
    write_record,
)
from trainer.studies.search.space import (
    Choice,
    Space,
    default_space,
    parse_space,
    with_choice,
)
from trainer.studies.shared import refuse_override

DEFAULT_SAMPLES = 8
_MAX_NAME_CHARS = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchOptions:
    """What the user asked for; None or empty: the default."""

    space: Sequence[str] = ()
    strategy: Strategy = "random"
    samples: int | None = None
    seed: int = 0
    metric: Metric | None = None
    split: str | None = None
    fold: int = 0
    first_epoch: int | None = None
    factor: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchPlan:
    """A search in its folder."""

    output: str
    record: SearchRecord
    """As written, before the runs are trained."""
    space: Space
    waiting: dict[str, Recipe]
    """Recipes to train, by their run folders."""
    past: list[str]
    """Folders of runs that are finished or were stopped."""


def plan_search(
    recipe_path: str,
    overrides: Sequence[str],
    data_path: str,
    output: str,
    options: SearchOptions,
) -> SearchPlan:
    """Plan a search, or how to go on with it, and write `search.json`.

    Raises:
        UserError: as `load_recipe`, `open_dataset`, `parse_space`, `choose_clips` and `check_fit`;
            options that conflict; the folder holds something else, or another search.
    """
    check_folder(output, RESULT)
    recipe, dataset = load_recipe(recipe_path, overrides), open_dataset(data_path)
    clips = choose_clips(recipe.data, dataset, split=options.split, fold=options.fold)
    searched = replace(recipe, data=clips.data, published=PublishedSettings())
    data = select_training_data(dataset, searched.data)
    check_fit(searched, data)
    space = parse_space(options.space or default_space(recipe), searched)
    for dimension in space:
        refuse_override(overrides, dimension.setting, "--space")
    choices = _choices(space, options)
    record = _describe(recipe, dataset, clips, space, options)
    before = read_record(output)
    if before is not None:
        check_same_search(output, before, record)
    known = before.trials if before else []
    runs = [*known, *_new_runs(choices)[len(known) :]]
    recipes: dict[str, Recipe] = {}
    updated = []
    for run in runs:
        path = storage.join(output, run.folder)
        own, reason = _try_settings(searched, data, run.settings)
        if own:
            run = _on_disk(run, path)
            if run.state in ("waiting", "failed") and run.number <= len(choices):
                run = replace(run, state="waiting", reason="")
                recipes[path] = own
        else:
            run = replace(run, state="failed", reason=reason)
        updated.append(run)
    record = replace(record, trials=updated)
    write_record(output, record)
    ended = [run for run in updated if run.state in ("finished", "stopped")]
    past = [storage.join(output, run.folder) for run in ended]
    return SearchPlan(output=output, record=record, space=space, waiting=recipes, past=past)


def _choices(space: Space, options: SearchOptions) -> list[Choice]:
    if options.strategy == "grid":
        if options.samples is not None:
            raise UserError("--samples", "a grid has as many runs as combinations", "leave it out")
        return grid(space)
    num = options.samples or min(DEFAULT_SAMPLES, num_combinations(space))
    return draw(space, seed=options.seed, num=int(num))


def _describe(
    recipe: Recipe,
    dataset: PreparedDataset,
    clips: ChosenClips,
    space: Space,
    options: SearchOptions,
) -> SearchRecord:
    """The search, without its runs."""
    asha = None
    if options.strategy == "asha":
        asha = _asha(recipe, space, options)
    elif (options.first_epoch, options.factor) != (None, None):
        raise UserError("--first-epoch, --factor", "are for --strategy asha", "leave them out")
    default: Metric = "accuracy" if recipe.train.loss == "ce" else "mAP"
    return SearchRecord(
        recipe=recipe.name,
        settings=recipe.to_json(),
        data=dataset.path,
        data_fingerprint=dataset.card.fingerprint,
        strategy=options.strategy,
        space={dimension.setting: dimension.text for dimension in space},
        seed=options.seed,
        asha=asha,
        metric=options.metric or recipe.train.select_by or default,
        chosen_by=clips.name,
        eval_split=clips.data.eval_split,
        fold=clips.data.fold,
        unused_folds=clips.data.unused_folds,
        recipe_evaluates_on=clips.reported,
        are_reported=clips.are_reported,
        trials=[],
    )


def _asha(recipe: Recipe, space: Space, options: SearchOptions) -> AshaSettings:
    """When to stop runs; None of the options: the defaults."""
    if any(dimension.setting == "train.epochs" for dimension in space):
        raise UserError(
            "--space train.epochs",
            "ASHA compares runs after the same epochs of one schedule",
            "search it with --strategy random or grid",
        )
    defaults = AshaSettings()
    chosen = AshaSettings(
        first_epoch=options.first_epoch or defaults.first_epoch,
        factor=options.factor or defaults.factor,
    )
    if chosen.factor < 2:
        raise UserError("--factor", f"must be at least 2, got {chosen.factor}")
    if chosen.first_epoch >= recipe.train.epochs:
        raise UserError(
            "--strategy asha",
            f"compares runs from epoch {chosen.first_epoch} on, but each has "
            f"{recipe.train.epochs} (train.epochs)",
            "lower --first-epoch, or use --strategy random",
        )
    return chosen


def _new_runs(choices: Sequence[Choice]) -> list[SearchRun]:
    return [
        SearchRun(number=number, folder=folder_name(number, choice), settings=choice)
        for number, choice in enumerate(choices, start=1)
    ]


def folder_name(number: int, choice: Mapping[str, Any]) -> str:
    """Name of a run's folder: its number, and its settings as far as a name can hold them."""
    texts = [f"{setting.partition('.')[2]}-{value}" for setting, value in choice.items()]
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(texts)).strip("_")
    return f"{number:03d}-{name}"[:_MAX_NAME_CHARS].rstrip("-_.")


def _try_settings(
    searched: Recipe, data: TrainingData, choice: Mapping[str, Any]
) -> tuple[Recipe | None, str]:
    """The recipe of a run; None, and why, if these settings cannot be."""
    try:
        recipe = with_choice(searched, choice, "")
        check_fit(recipe, data)
        check_rate(recipe, data)
    except UserError as error:
        return None, str(error)
    return recipe, ""


def _on_disk(run: SearchRun, path: str) -> SearchRun:
    """The run with its state as its folder has it; one that diverged or failed stays so."""
    if run.state == "diverged":
        return run
    if is_finished(path):
        try:
            check_learned(path)
        except DivergedError as error:
            return replace(run, state="diverged", reason=error.what)
        return replace(run, state="finished")
    if is_stopped(path):
        return replace(run, state="stopped")
    return run if run.state == "failed" else replace(run, state="waiting")
