"""`jobs`: the jobs of a cluster."""

import argparse

from cluster.commands.job_options import add_server_option
from pipeline.commands.step import Step


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a JSON list, for programs")
    add_server_option(parser)


def run(arguments: argparse.Namespace) -> None:
    from cluster.job_table import list_jobs

    list_jobs(address=arguments.address, as_json=arguments.json)


STEP = Step(
    name="jobs",
    summary="List the jobs of a cluster.",
    example="",
    add_options=add_options,
    run=run,
)
