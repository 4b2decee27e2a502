"""`export`: writes a run's weights as a folder that transformers loads."""

import argparse

from pipeline.commands.step import Step, path
from trainer.commands.options import add_weights_option


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="run", type=path, help="folder of the run")
    parser.add_argument("--out", type=path, required=True, help="folder to write")
    add_weights_option(parser)


def run(arguments: argparse.Namespace) -> None:
    from trainer.exchange.export_run import export_run

    export_run(arguments.run_folder, arguments.out, arguments.weights)
    print(arguments.out)


STEP = Step(
    name="export",
    summary="Write a run's weights as a folder that transformers loads; its ast.safetensors can be "
    "read by `import` and model.weights_file.",
    example="runs/esc50 --out models/esc50",
    add_options=add_options,
    run=run,
)
