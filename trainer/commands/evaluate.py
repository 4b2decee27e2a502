"""`evaluate`: scores clips with a run's weights."""

import argparse
import logging
from typing import get_args

from cluster.commands.session_options import session
from pipeline.commands.step import Step, path
from trainer.commands.evaluate_ensemble import evaluate_ensemble
from trainer.commands.options import LOADING, add_weights_option, add_worker_options, workers
from trainer.model.settings import Precision
from trainer.optim.settings import ScoreFunction

_logger = logging.getLogger(__name__)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_folder", metavar="run", type=path, help="folder of the run or of the ensemble"
    )
    parser.add_argument("--split", help="split to score (default: the run's held-out clips)")
    parser.add_argument("--fold", type=int, help="score only this fold of the split")
    parser.add_argument("--data", type=path, help="prepared data set (default: the training data)")
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        help="precision that the model computes in (default: that of the training)",
    )
    parser.add_argument(
        "--scores",
        choices=get_args(ScoreFunction),
        help="what makes scores of the model's outputs (default: as in the training)",
    )
    add_weights_option(parser)
    add_worker_options(parser)


def run(arguments: argparse.Namespace) -> None:
    from trainer.studies.ensemble.result import is_ensemble

    if is_ensemble(arguments.run_folder):
        evaluate_ensemble(arguments)
    else:
        _evaluate_run(arguments)


def _evaluate_run(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from pipeline.dataset.prepared import note_unchecked, open_dataset
    from trainer.data.clips import select_clips
    from trainer.run.checks import check_evaluation
    from trainer.run.result_table import result_table
    from trainer.run.run_folder import held_out, read_run
    from trainer.run.trained_on import note_trained_on
    from trainer.scores.predictions import predictions_path

    folder = arguments.run_folder
    info = read_run(folder)
    data = arguments.data or info.data.path
    dataset = open_dataset(data)
    note_unchecked(dataset)
    split, fold = arguments.split, arguments.fold
    if split is None:
        split, own_fold = held_out(folder, info)
        fold = own_fold if fold is None else fold
    clips = folder, data, split, fold or 0
    name = check_evaluation(*clips, arguments.weights)
    if note := note_trained_on(folder, info, dataset, select_clips(dataset, *clips[2:])):
        _logger.info("%s", note)
    with session(arguments, loading=LOADING):
        from trainer.on_ray.train import run_evaluation

        run_evaluation(
            *clips,
            workers(arguments),
            arguments.weights,
            precision=arguments.precision,
            scores=arguments.scores,
        )
    Console().print(result_table(folder, name))
    print(predictions_path(folder, name))


STEP = Step(
    name="evaluate",
    summary="Score clips with a run's weights or an ensemble's members, by default those they held "
    "out: mAP, mAUC, d-prime and accuracy, and per class.",
    example="runs/esc50 --weights best",
    add_options=add_options,
    run=run,
)
