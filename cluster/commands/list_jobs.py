"""`jobs`: the jobs of a cluster."""

import argparse

from cluster.commands.job_options import add_server_option
from pipeline.commands.step import Step


def run(arguments: argparse.Namespace) -> None:
    from cluster import jobs

    jobs.list_jobs(address=arguments.address)


STEP = Step(
    name="jobs",
    summary="List the jobs of a cluster.",
    example="",
    add_options=add_server_option,
    run=run,
)
