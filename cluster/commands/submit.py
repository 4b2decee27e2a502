"""`submit`: run a step on a cluster."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.commands.job_options import add_server_option
from pipeline.commands.step import Step

PROJECT = Path(__file__).resolve().parents[2]


def submit_step(check: Callable[[Sequence[str]], object]) -> Step:
    """The step; `check` ends the program where the options of the step to run are wrong."""

    def run(arguments: argparse.Namespace) -> int:
        from cluster import jobs

        command = arguments.step[1:] if arguments.step[:1] == ["--"] else arguments.step
        if command:
            # A mistake in the step's own options is better found here than on the cluster.
            check(command)
        return jobs.submit(
            command,
            address=arguments.address,
            wait=arguments.wait,
            environment=jobs.forwarded_environment(
                arguments.env, credentials=arguments.forward_credentials, environ=os.environ
            ),
            working_dir=str(PROJECT),
        )

    return Step(
        name="submit",
        summary="Run a step on a Ray cluster through its job server; follows the log and ends with "
        "the job's exit status.",
        example="--address http://head:8265 -- prepare s3://lab/esc50.parquet --out s3://lab/esc50",
        add_options=_add_options,
        run=run,
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-wait", dest="wait", action="store_false", help="return once the job is submitted"
    )
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="pass this variable to the job, too",
    )
    parser.add_argument(
        "--forward-credentials",
        action="store_true",
        help="pass the AWS keys to the job; whoever can see the job server can then see them",
    )
    parser.add_argument("step", nargs=argparse.REMAINDER, metavar="-- STEP ...", help="what to run")
    add_server_option(parser)
