"""`train`: trains a recipe on a prepared data set."""

import argparse
import logging

from cluster.commands.session_options import session
from pipeline.commands.step import Step
from recipes import find_recipe
from trainer.commands.options import LOADING, LOADING_MODEL, add_training_options, workers

_logger = logging.getLogger(__name__)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_training_options(parser, "folder of the run")


def run(arguments: argparse.Namespace) -> None:
    from pipeline.dataset.prepared import note_unchecked, open_dataset
    from pipeline.dataset.source_rates import note_low_rates
    from trainer.recipe.parse import load_recipe

    data, output = arguments.data, arguments.out
    # The most common mistakes are reported before PyTorch is loaded, which takes seconds.
    recipe = load_recipe(find_recipe(arguments.recipe), arguments.set)
    dataset = open_dataset(data)
    note_unchecked(dataset)

    from rich.console import Console

    from trainer.checkpoints.paths import checkpoint_paths
    from trainer.run.checks import check_training
    from trainer.run.history import check_learned
    from trainer.run.result_table import result_table
    from trainer.run.run_folder import read_run
    from trainer.scores.predictions import predictions_path

    is_finished, warnings = check_training(recipe, data, output)
    for warning in warnings:
        _logger.warning("%s", warning)
    if is_finished:
        print(f"{output}: already finished")
    else:
        if checkpoints := checkpoint_paths(output):
            newest = checkpoints[-1].rpartition("/")[2]
            _logger.info("%s: resuming; the newest checkpoint is %s", output, newest)
        note_low_rates(dataset)
        with session(arguments, loading=(*LOADING, *LOADING_MODEL)):
            from trainer.on_ray.train import run_training

            run_training(recipe, data, output, workers(arguments))
    name = read_run(output).data.eval_name
    Console().print(result_table(output, name))
    print(predictions_path(output, name))
    check_learned(output)


STEP = Step(
    name="train",
    summary="Train a recipe on a prepared data set. Run the same command again to resume from the "
    "last checkpoint, or with a larger train.epochs to train a finished run for longer.",
    example="esc50 --data data/esc50 --out runs/esc50 --set data.fold=1",
    add_options=add_options,
    run=run,
)
