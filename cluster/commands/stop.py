"""`stop`: end a job."""

import argparse

from cluster.commands.job_options import add_server_option
from pipeline.commands.step import Step


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="the job's id")
    add_server_option(parser)


def run(arguments: argparse.Namespace) -> None:
    from cluster import jobs

    jobs.stop(arguments.id, address=arguments.address)


STEP = Step(name="stop", summary="Stop a job.", example="JOB", add_options=add_options, run=run)
