"""`ensemble`: trains seeds and variants of a recipe and scores the mean of their outputs."""

import argparse
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

from pipeline.commands.step import Step, path, positive
from pipeline.errors import UserError
from recipes import find_recipe
from trainer.commands.member_scores import complete_predictions
from trainer.commands.options import add_training_options
from trainer.commands.several_runs import add_several_options, train_scored
from trainer.studies.ensemble.settings import Average, ChoiceMetric, Outputs
from trainer.studies.shared import NotScored

if TYPE_CHECKING:
    from trainer.studies.ensemble.clips import SplitClips
    from trainer.studies.ensemble.members import Member
    from trainer.studies.ensemble.plan import EnsemblePlan
    from trainer.studies.ensemble.result import EnsembleResult

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
    _add_scoring_options(parser)
    add_training_options(
        parser, "folder of the runs and of the ensemble's predictions", must_train=False
    )
    add_several_options(parser)


def _add_scoring_options(parser: argparse.ArgumentParser) -> None:
    averages, outputs, metrics = (get_args(kind) for kind in (Average, Outputs, ChoiceMetric))
    parser.add_argument(
        "--average",
        choices=averages,
        default=averages[0],
        help="what of the members to average (default: %(default)s, as published)",
    )
    parser.add_argument(
        "--outputs",
        choices=outputs,
        nargs="+",
        default=[outputs[0]],
        help="which outputs of each run are members: those by its last or other weights, or "
        "cumulative, the mean of the scores of all its epochs (default: last)",
    )
    parser.add_argument(
        "--split", help="split to score (default: the clips that the members hold out)"
    )
    parser.add_argument("--fold", type=int, help="score only this fold of the split")
    parser.add_argument(
        "--choose",
        type=positive,
        metavar="PICKS",
        help="choose members by this many greedy picks with replacement; each counts as often as "
        "it was picked",
    )
    parser.add_argument(
        "--choose-on", metavar="SPLIT", help="split to choose on, which must not be reported"
    )
    parser.add_argument("--choose-fold", type=int, help="choose on this fold of that split alone")
    parser.add_argument(
        "--choose-by",
        choices=metrics,
        default=metrics[0],
        help="metric to choose by (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from trainer.studies.ensemble.plan import plan_ensemble
    from trainer.studies.ensemble.result import former_members
    from trainer.studies.ensemble.table import make_table

    _check_choice(arguments)
    plan = plan_ensemble(
        find_recipe(arguments.recipe) if arguments.recipe else None,
        arguments.set,
        arguments.out,
        data_path=arguments.data,
        seeds=arguments.seeds,
        variants=arguments.variant,
        runs=arguments.runs,
        are_scored=_are_own_clips(arguments),
    )
    sets = None if _are_own_clips(arguments) else _open_sets(arguments, plan)
    not_scored = _train(arguments, plan) if plan.recipes else NotScored()
    left_out = former_members(plan.runs, arguments.out)
    Console().print(make_table(_score(arguments, plan, not_scored, sets)))
    if left_out:
        _logger.warning(
            "previous members that are no longer included: %s; name them by --seeds, --variant or "
            "--runs to include them",
            " ".join(left_out),
        )
    return 1 if not_scored.failed else 0


def _check_choice(arguments: argparse.Namespace) -> None:
    if arguments.choose is not None and arguments.choose_on is None:
        raise UserError("--choose", "needs a split to choose on", "name one by --choose-on")
    for option in ("choose_on", "choose_fold"):
        if arguments.choose is None and getattr(arguments, option) is not None:
            raise UserError(f"--{option.replace('_', '-')}", "is for --choose, which is not given")


def _are_own_clips(arguments: argparse.Namespace) -> bool:
    """Whether only the clips that the members hold out count, whose predictions are stored."""
    names_data = arguments.data is not None and arguments.recipe is None
    others = (arguments.split, arguments.fold, arguments.choose)
    return not names_data and all(value is None for value in others)


def _train(arguments: argparse.Namespace, plan: "EnsemblePlan") -> NotScored:
    from trainer.run.history import is_finished
    from trainer.studies.ensemble.growing import GrowingEnsemble
    from trainer.studies.ensemble.members import MemberClips

    growing = GrowingEnsemble(MemberClips(name=plan.name), len(plan.runs), arguments.average)
    for run_path in plan.runs:
        if is_finished(run_path):
            growing.start_with(run_path)
    return train_scored(plan.recipes, arguments, plan.runs, growing.add)


def _open_sets(
    arguments: argparse.Namespace, plan: "EnsemblePlan"
) -> "tuple[SplitClips, SplitClips | None]":
    """The clips to report and those to choose on.

    Raises:
        UserError: the data set or a split does not exist, or some clips are in both.
    """
    from pipeline.dataset.prepared import open_dataset
    from trainer.run.run_folder import read_run
    from trainer.studies.ensemble.clips import open_clips, refuse_overlap

    dataset = open_dataset(arguments.data or read_run(plan.runs[0]).data.path)
    split, fold = arguments.split, arguments.fold
    if split is None:
        split, own_fold = plan.held_out()
        fold = own_fold if fold is None else fold
    reported = open_clips(dataset, split, fold or 0)
    if arguments.choose is None:
        return reported, None
    choosing = open_clips(dataset, arguments.choose_on, arguments.choose_fold or 0)
    refuse_overlap(choosing.clips, reported.clips)
    return reported, choosing


def _score(
    arguments: argparse.Namespace,
    plan: "EnsemblePlan",
    not_scored: NotScored,
    sets: "tuple[SplitClips, SplitClips | None] | None",
) -> "EnsembleResult":
    from trainer.studies.ensemble.cumulative import write_cumulative
    from trainer.studies.ensemble.members import MemberClips, make_members
    from trainer.studies.ensemble.score import Choosing, score_ensemble

    scored = [run for run in plan.runs if run not in not_scored.runs]
    members = make_members(scored, arguments.outputs)
    choosing = None
    if sets is None:
        clips = MemberClips(name=plan.name)
        write_cumulative(members, clips)
    else:
        clips = complete_predictions(members, sets[0], arguments)
        if sets[1] is not None:
            _note_trained_on(members, sets[1])
            choosing = Choosing(
                num_picks=arguments.choose,
                metric=arguments.choose_by,
                clips=complete_predictions(members, sets[1], arguments),
            )
    return score_ensemble(
        members,
        clips,
        arguments.out,
        average=arguments.average,
        choosing=choosing,
        not_scored=not_scored,
    )


def _note_trained_on(members: "Sequence[Member]", choosing: "SplitClips") -> None:
    """Warn if members were trained on the clips to choose on, of which they know the answers."""
    from trainer.run.run_folder import read_run
    from trainer.run.trained_on import note_trained_on

    runs_by_note: dict[str, list[str]] = {}
    for run in dict.fromkeys(member.run for member in members):
        if note := note_trained_on(run, read_run(run), choosing.dataset, choosing.clips):
            runs_by_note.setdefault(note, []).append(run)
    for note, runs in runs_by_note.items():
        _logger.warning("--choose-on %s: of %s: %s", choosing.split, ", ".join(runs), note)


STEP = Step(
    name="ensemble",
    summary="Train a recipe with several seeds and in variants, as many runs at a time as fit, and "
    "score the mean of their outputs and those of --runs. Run the same command again to resume.",
    example="esc50 --seeds 0 1 2 --data data/esc50 --out runs/esc50x3",
    add_options=add_options,
    run=run,
)
