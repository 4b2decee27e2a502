"""`ensemble`: trains seeds and variants of a recipe and scores their mean output."""

import argparse
import logging

from pipeline.commands.step import Step, path
from recipes import find_recipe
from trainer.commands.options import add_training_options
from trainer.commands.several_runs import train_all

_logger = logging.getLogger(__name__)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[], help="seeds to train the recipe with"
    )
    parser.add_argument(
        "--variant",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "SECTION.KEY=VALUE"),
        help="also train the recipe with these settings, in a folder of that name",
    )
    parser.add_argument(
        "--runs",
        type=path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="finished runs to include as members",
    )
    add_training_options(
        parser, "folder of the runs and of the ensemble's predictions", must_train=False
    )


def run(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from trainer.studies.ensemble import (
        former_members,
        make_table,
        plan_ensemble,
        score_ensemble,
    )

    plan = plan_ensemble(
        find_recipe(arguments.recipe) if arguments.recipe else None,
        arguments.set,
        arguments.out,
        data_path=arguments.data,
        seeds=arguments.seeds,
        variants=arguments.variant,
        runs=arguments.runs,
    )
    diverged = train_all(plan.recipes, arguments, plan.runs) if plan.recipes else []
    left_out = former_members(plan.runs, arguments.out)
    scored = [run for run in plan.runs if run not in diverged]
    Console().print(make_table(score_ensemble(scored, plan.name, arguments.out, diverged)))
    if left_out:
        _logger.warning(
            "previous members that are no longer included: %s; name them by --seeds, --variant or "
            "--runs to include them",
            " ".join(left_out),
        )


STEP = Step(
    name="ensemble",
    summary="Train a recipe with several seeds and in variants, as many runs at a time as fit, and "
    "score the mean of their outputs and those of --runs. Run the same command again to resume.",
    example="esc50 --seeds 0 1 2 --data data/esc50 --out runs/esc50x3",
    add_options=add_options,
    run=run,
)
