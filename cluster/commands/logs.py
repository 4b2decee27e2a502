"""`logs`: the log of a job."""

import argparse

from cluster.commands.job_options import add_server_option
from pipeline.commands.step import Step


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="the job's id")
    parser.add_argument("--follow", action="store_true", help="keep printing until the job ends")
    add_server_option(parser)


def run(arguments: argparse.Namespace) -> int:
    from cluster import jobs

    return jobs.print_logs(arguments.id, address=arguments.address, follow=arguments.follow)


STEP = Step(
    name="logs",
    summary="Print a job's log.",
    example="JOB --follow",
    add_options=add_options,
    run=run,
)
