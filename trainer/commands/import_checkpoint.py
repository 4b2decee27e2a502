"""`import`: makes a run of a trained AST."""

import argparse

from pipeline.commands.step import Step, path
from pipeline.terminal.units import counted
from recipes import find_recipe
from trainer.commands.options import RECIPE_HELP, add_set_option


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=path, help="file or folder of the trained model")
    parser.add_argument("--data", type=path, required=True, help="folder of the prepared data set")
    parser.add_argument("--out", type=path, required=True, help="folder of the run")
    parser.add_argument("--recipe", help=f"{RECIPE_HELP} (default: the checkpoint's own settings)")
    add_set_option(parser)


def run(arguments: argparse.Namespace) -> None:
    from trainer.exchange.import_run import import_run

    result = import_run(
        arguments.checkpoint,
        arguments.data,
        arguments.out,
        find_recipe(arguments.recipe) if arguments.recipe else "",
        arguments.set,
    )
    how = "matched by name" if result.by_name else "assumed to be in the order of the data set's"
    num_others = result.num_classes_left_out
    others = f"; left out {counted(num_others, 'other')} of the checkpoint" if num_others else ""
    print(f"{arguments.out}: {counted(result.num_classes, 'class', 'classes')}, {how}{others}")


STEP = Step(
    name="import",
    summary="Make a run of a trained AST, to evaluate, average and report as if it were trained "
    "here: a .pth of the AST authors, a folder of transformers, an exported folder or another run.",
    example="audioset_10_10_0.4593.pth --data data/audioset --out runs/published",
    add_options=add_options,
    run=run,
)
