"""`search`: trains a recipe with other settings and finds the best."""

import argparse
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from pipeline.commands.step import Step, positive
from pipeline.errors import UserError
from recipes import find_recipe
from trainer.commands.options import add_training_options
from trainer.commands.several_runs import add_several_options, raise_last, train_runs

if TYPE_CHECKING:  # they load PyTorch
    from trainer.studies.search.plan import SearchPlan
    from trainer.studies.search.record import SearchRecord

_logger = logging.getLogger(__name__)

_STRATEGIES = ("random", "grid", "asha")
_METRICS = ("accuracy", "mAP", "mAUC", "d_prime")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--space",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUES",
        help="a setting to search, such as schedule.lr=log:1e-6:1e-3, augment.mixup_share="
        "uniform:0:0.8 or optimiser.name=adam,adamw; with :COUNT behind a range, so many values "
        "evenly spaced in it (default: schedule.lr, from a tenth to ten times the recipe's)",
    )
    parser.add_argument(
        "--strategy",
        choices=_STRATEGIES,
        default=_STRATEGIES[0],
        help="random: settings spread over the space; grid: every combination of values; asha: as "
        "random, but runs that are worse than others after some epochs are stopped "
        "(default: %(default)s)",
    )
    parser.add_argument("--samples", type=positive, help="runs, unless for a grid (default: 8)")
    parser.add_argument(
        "--seed", type=_whole, default=0, help="decides the settings (default: %(default)s)"
    )
    parser.add_argument(
        "--metric",
        choices=_METRICS,
        help="score to choose by (default: train.select_by of the recipe, else accuracy with "
        "cross-entropy and mAP without)",
    )
    clips = parser.add_mutually_exclusive_group()
    clips.add_argument(
        "--split",
        help="split to choose by (default: one named validation, else a fold of the training "
        "split)",
    )
    clips.add_argument("--fold", type=positive, help="fold of the training split to choose by")
    parser.add_argument(
        "--first-epoch", type=positive, help="first epoch after which asha compares (default: 1)"
    )
    parser.add_argument(
        "--factor",
        type=positive,
        help="the best of so many runs goes on, for so many times the epochs (default: 3)",
    )
    add_training_options(parser, "folder of the runs, the table and best.toml")
    add_several_options(parser)


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0, got {text!r}")
    return int(text)


def run(arguments: argparse.Namespace) -> None:
    from pipeline.dataset.prepared import open_dataset
    from trainer.recipe.parse import load_recipe

    recipe = find_recipe(arguments.recipe)
    # The most common mistakes are reported before PyTorch is loaded, which takes seconds.
    load_recipe(recipe, arguments.set)
    open_dataset(arguments.data)

    from rich.console import Console

    from trainer.report.search_page import write_search_page
    from trainer.run.leaving import StoppedError
    from trainer.studies.search.best import write_best
    from trainer.studies.search.plan import SearchOptions, plan_search
    from trainer.studies.search.result import make_table, score_search

    options = SearchOptions(
        space=arguments.space,
        strategy=arguments.strategy,
        samples=arguments.samples,
        seed=arguments.seed,
        metric=arguments.metric,
        split=arguments.split,
        fold=arguments.fold or 0,
        first_epoch=arguments.first_epoch,
        factor=arguments.factor,
    )
    plan = plan_search(recipe, arguments.set, arguments.data, arguments.out, options)
    if plan.record.are_reported:
        _logger.warning(
            "%s: these are the clips that the recipe reports on: the best score will be too good, "
            "as it is the best of many on them; choose by others to report it",
            plan.record.chosen_by,
        )
    errors = _train(plan, arguments)
    for error in errors.values():
        if isinstance(error, StoppedError):
            raise error
    record = score_search(plan, errors)
    Console().print(make_table(record))
    print(write_search_page(arguments.out))
    if record.best is None:
        _refuse(record, list(errors.values()), arguments.out)
    for setting in record.edges:
        _logger.warning(
            "%s: the best value is at the edge of the range: search a range around it, in another "
            "--out",
            setting,
        )
    print(write_best(arguments.out, record))


def _train(plan: "SearchPlan", arguments: argparse.Namespace) -> dict[str, Exception]:
    """Train the runs; returns the error of each that failed, by its folder."""
    if plan.record.asha is None:
        return train_runs(plan.waiting, arguments)
    from trainer.on_ray.search import run_with_asha

    asha = run_with_asha(plan.record.metric, plan.record.asha, plan.past)
    return train_runs(plan.waiting, arguments, run=asha)


def _refuse(record: "SearchRecord", errors: Sequence[Exception], output: str) -> NoReturn:
    """Raise the last error of runs, none of which has a score; print the others."""
    if errors:
        raise_last(errors)
    reasons = [run.reason for run in record.trials if run.reason]
    what = f"no run is finished and has {record.metric}"
    raise UserError(output, f"{what} ({reasons[0]})" if reasons else what)


STEP = Step(
    name="search",
    summary="Train a recipe with other settings, by default learning rates, as many runs at a time "
    "as fit, and find the best by validation clips. Run the same command again to resume, or with "
    "more --samples to go on.",
    example="own-clips --data my/dataset --out runs/search",
    add_options=add_options,
    run=run,
)
