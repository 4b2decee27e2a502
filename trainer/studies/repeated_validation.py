"""Cross-validation repeated with several seeds: the deviation that papers give for a mean of folds.

In: a recipe, a data set with folds, and seeds; then the finished runs. Steps: a cross-validation
for each seed, in a folder of its own; the mean over its folds, after the last epoch and after the
one that it picks. Out: a table, and `repeated_cross_validation.json`: that mean for each seed, and
mean and standard deviation over the seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from pipeline import storage
from pipeline.errors import UserError
from trainer.recipe.parse import load_recipe
from trainer.recipe.recipe import Recipe
from trainer.run.run_folder import check_folder
from trainer.studies.cross_validation import (
    FIGURES,
    PICKED_BY,
    CrossValidation,
    plan_folds,
    score_folds,
)
from trainer.studies.ensemble.plan import with_seed
from trainer.studies.shared import (
    Figures,
    NotScored,
    cells_without_scores,
    figures_over_runs,
    refuse_override,
    runs_to_json,
    table_cells,
)

RESULT = "repeated_cross_validation.json"

SeedRecipes = dict[int, dict[str, Recipe]]
"""Recipes of the folds by their run folders, for each seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedScores:
    """Means over the folds, by seed, and their mean and deviation over the seeds."""

    picked_by: str | None = None
    """How the epoch of each seed was picked; None for the last one."""
    epochs: dict[str, int]
    seeds: dict[str, Figures]
    mean: Figures
    std: Figures

    def to_json(self) -> dict[str, Any]:
        """The entry of the result."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class RepeatedValidation:
    """The cross-validation of each seed."""

    seeds: dict[int, CrossValidation]
    diverged: list[int] = field(default_factory=list)
    """Seeds of which a run diverged: the mean of their other folds would not compare."""
    failed: list[int] = field(default_factory=list)
    """Other seeds of which a run failed."""

    @property
    def last(self) -> SeedScores:
        """Scores after the last epoch."""
        return _over_seeds({seed: (one.num_epochs, one.last.mean) for seed, one in self._items()})

    @property
    def picked(self) -> SeedScores:
        """Scores after the epoch that each seed's cross-validation picks."""
        picked = {seed: (one.picked_epoch, one.picked.mean) for seed, one in self._items()}
        return _over_seeds(picked, picked_by=PICKED_BY)

    def _items(self) -> list[tuple[int, CrossValidation]]:
        return list(self.seeds.items())


def plan_seeds(
    recipe_path: str,
    overrides: Sequence[str],
    data_path: str,
    output: str,
    *,
    folds: Sequence[int],
    seeds: Sequence[int],
) -> SeedRecipes:
    """What to train; no `folds`: all of them.

    Raises:
        UserError: as `plan_folds`; a seed is out of range or named twice; an override sets it.
    """
    refuse_override(overrides, "train.seed", "--seeds")
    check_folder(output, RESULT)
    if len(set(seeds)) < len(seeds):
        raise UserError("--seeds", f"each must be named once, got {' '.join(map(str, seeds))}")
    recipe = load_recipe(recipe_path, overrides)
    for seed in seeds:
        with_seed(recipe, seed)
    return {
        seed: plan_folds(
            recipe_path,
            [*overrides, f"train.seed={seed}"],
            data_path,
            _folder(output, seed),
            folds,
        ).recipes
        for seed in seeds
    }


def score_seeds(
    recipes: Mapping[int, Mapping[str, Recipe]], output: str, not_scored: NotScored | None = None
) -> RepeatedValidation:
    """Read the finished runs of `plan_seeds` and write the result, and each seed's, to `output`.

    Args:
        not_scored: those of these runs that have no scores.

    Raises:
        UserError: a run's curves are damaged, or every seed has a run without scores.
    """
    not_scored = not_scored or NotScored()
    states = {
        seed: "diverged" if runs.keys() & set(not_scored.diverged) else "failed"
        for seed, runs in recipes.items()
        if runs.keys() & not_scored.runs
    }
    complete = {seed: runs for seed, runs in recipes.items() if seed not in states}
    if not complete:
        remedy = "lower schedule.lr" if not_scored.diverged else "see the errors of the runs"
        raise UserError(output, "of every seed, a run diverged or failed", remedy)
    result = RepeatedValidation(
        seeds={seed: score_folds(runs, _folder(output, seed)) for seed, runs in complete.items()},
        diverged=[seed for seed, state in states.items() if state == "diverged"],
        failed=[seed for seed, state in states.items() if state == "failed"],
    )
    document = {
        "runs": runs_to_json([path for runs in complete.values() for path in runs], output),
        "diverged": runs_to_json(not_scored.diverged, output),
        "failed": [asdict(one) for one in not_scored.failed_to_json(output)],
        "last_epoch": result.last.to_json(),
        "picked_epoch": result.picked.to_json(),
    }
    storage.write_json(storage.join(output, RESULT), document)
    return result


def make_table(result: RepeatedValidation) -> Table:
    """The mean over the folds of each seed, and mean and standard deviation over the seeds."""
    last, picked = result.last, result.picked
    epochs = ", ".join(map(str, picked.epochs.values()))
    table = Table(
        title=f"Mean over the folds, for {len(result.seeds)} seed{'s' * (len(result.seeds) > 1)}",
        caption=f"Picked: epoch {epochs}, by {picked.picked_by}.",
    )
    table.add_column("seed")
    for epoch in ("last epoch", "picked epoch"):
        for name in FIGURES:
            table.add_column(f"{name}\n{epoch}", justify="right")
    for seed in result.seeds:
        figures = (scores.seeds[str(seed)] for scores in (last, picked))
        table.add_row(str(seed), *(cell for each in figures for cell in table_cells(each)))
    for state, seeds in (("diverged", result.diverged), ("failed", result.failed)):
        for seed in seeds:
            table.add_row(str(seed), *cells_without_scores(state, 2 * len(FIGURES)))
    table.add_section()
    table.add_row("mean", *table_cells(last.mean), *table_cells(picked.mean))
    table.add_row("standard deviation", *table_cells(last.std), *table_cells(picked.std))
    return table


def _over_seeds(
    scores: Mapping[int, tuple[int, Figures]], picked_by: str | None = None
) -> SeedScores:
    mean, std = figures_over_runs([figures for _, figures in scores.values()])
    return SeedScores(
        picked_by=picked_by,
        epochs={str(seed): epoch for seed, (epoch, _) in scores.items()},
        seeds={str(seed): figures for seed, (_, figures) in scores.items()},
        mean=mean,
        std=std,
    )


def _folder(output: str, seed: int) -> str:
    return storage.join(output, f"seed-{seed}")
