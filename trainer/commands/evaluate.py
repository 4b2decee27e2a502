"""`evaluate`: scores a split with a run's weights."""

import argparse
from typing import get_args

from cluster.commands.session_options import session
from pipeline.commands.step import Step, path
from trainer.commands.options import add_weights_option, add_worker_options, workers
from trainer.model.settings import Precision


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="run", type=path, help="folder of the run")
    parser.add_argument("--split", required=True, help="split to score")
    parser.add_argument("--fold", type=int, default=0, help="score only this fold of the split")
    parser.add_argument("--data", type=path, help="prepared data set (default: the training data)")
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        help="precision that the model computes in (default: that of the training)",
    )
    add_weights_option(parser)
    add_worker_options(parser)


def run(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from pipeline.dataset.prepared import note_unchecked, open_dataset
    from trainer.on_ray.train import run_evaluation
    from trainer.run.checks import check_evaluation
    from trainer.run.result_table import result_table
    from trainer.run.run_folder import read_run
    from trainer.scores.predictions import predictions_path

    folder = arguments.run_folder
    data = arguments.data or read_run(folder).data.path
    note_unchecked(open_dataset(data))
    clips = folder, data, arguments.split, arguments.fold
    name = check_evaluation(*clips, arguments.weights)
    with session(arguments):
        run_evaluation(*clips, workers(arguments), arguments.weights, arguments.precision)
    Console().print(result_table(folder, name))
    print(predictions_path(folder, name))


STEP = Step(
    name="evaluate",
    summary="Score a split with a run's weights: mAP, mAUC, d-prime and accuracy, and per class.",
    example="runs/esc50 --split train --fold 1",
    add_options=add_options,
    run=run,
)
