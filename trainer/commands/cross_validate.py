"""`cross-validate`: a run for each fold of a data set, with mean and deviation of their scores."""

import argparse
import logging

from pipeline.commands.step import Step, positive
from recipes import find_recipe
from trainer.commands.options import add_training_options
from trainer.commands.several_runs import add_several_options, train_scored
from trainer.studies.shared import NotScored

_logger = logging.getLogger(__name__)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folds", type=positive, nargs="+", default=[], help="folds to hold out (default: all)"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[],
        help="repeat the cross-validation with each of these seeds; show the mean and deviation, "
        "over the seeds, of the folds' mean",
    )
    add_training_options(parser, "folder of the runs and of the table")
    add_several_options(parser)


def run(arguments: argparse.Namespace) -> int:
    not_scored = _repeat(arguments) if arguments.seeds else _cross_validate(arguments)
    return 1 if not_scored.failed else 0


def _repeat(arguments: argparse.Namespace) -> NotScored:
    from rich.console import Console

    from trainer.studies.repeated_validation import make_table, plan_seeds, score_seeds

    plan = plan_seeds(
        find_recipe(arguments.recipe),
        arguments.set,
        arguments.data,
        arguments.out,
        folds=arguments.folds,
        seeds=arguments.seeds,
    )
    recipes = {path: recipe for folds in plan.values() for path, recipe in folds.items()}
    not_scored = train_scored(recipes, arguments, recipes)
    Console().print(make_table(score_seeds(plan, arguments.out, not_scored)))
    return not_scored


def _cross_validate(arguments: argparse.Namespace) -> NotScored:
    from rich.console import Console

    from trainer.studies.cross_validation import make_table, plan_folds, score_folds

    recipe = find_recipe(arguments.recipe)
    plan = plan_folds(recipe, arguments.set, arguments.data, arguments.out, arguments.folds)
    not_scored = train_scored(plan.recipes, arguments, plan.scored)
    Console().print(make_table(score_folds(plan.scored, arguments.out, not_scored)))
    if plan.left_out:
        names = " ".join(folder.rpartition("/")[2] for folder in plan.left_out)
        _logger.warning("not in the table, as not finished: %s", names)
    return not_scored


STEP = Step(
    name="cross-validate",
    summary="Train a recipe once for each fold of the data set, holding that fold out, as many "
    "runs at a time as fit; show the scores, their mean and deviation. Run the same command again "
    "to resume.",
    example="esc50 --data data/esc50 --out runs/esc50",
    add_options=add_options,
    run=run,
)
