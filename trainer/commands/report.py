"""`report`: the HTML page of one or more runs."""

import argparse

from pipeline.commands.step import Step, path


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        type=path,
        nargs="+",
        metavar="run",
        help="folders of runs, of ensembles or of cross-validations",
    )
    parser.add_argument(
        "--out", type=path, help="page to write (default: report.html in the first folder)"
    )


def run(arguments: argparse.Namespace) -> None:
    from trainer.report.write import write_report

    print(write_report(arguments.runs, output=arguments.out))


STEP = Step(
    name="report",
    summary="Draw one HTML page of one or more runs; it needs nothing from elsewhere.",
    example="runs/esc50 runs/esc50-wide --out compared.html",
    add_options=add_options,
    run=run,
)
