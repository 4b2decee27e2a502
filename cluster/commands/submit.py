"""`submit`: run a step on a cluster."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.commands.job_options import add_server_option
from pipeline.commands.step import Step
from pipeline.storage.paths import is_remote
from recipes import find_recipe

PROJECT = Path(__file__).resolve().parents[2]


def submit_step(parse: Callable[[Sequence[str]], argparse.Namespace]) -> Step:
    """The step; `parse` parses the command of the step to run, and exits if it is invalid."""

    def run(arguments: argparse.Namespace) -> int:
        from cluster import jobs

        command = arguments.step[1:] if arguments.step[:1] == ["--"] else arguments.step
        recipe = None
        if command:
            # Mistakes in the step's options are reported here, before anything runs on the cluster.
            recipe = _recipe_to_upload(getattr(parse(command), "recipe", None))
        return jobs.submit(
            command,
            recipe=recipe,
            address=arguments.address,
            wait=arguments.wait,
            environment=jobs.forwarded_environment(
                arguments.env, credentials=arguments.forward_credentials, environ=os.environ
            ),
            working_dir=str(PROJECT),
        )

    return Step(
        name="submit",
        summary="Run a step on a Ray cluster through its job server; follow the log, and exit with "
        "the job's status.",
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
        help="also pass this environment variable to the job",
    )
    parser.add_argument(
        "--forward-credentials",
        action="store_true",
        help="pass the AWS keys to the job; everyone with access to the job server can see them",
    )
    parser.add_argument(
        "step",
        nargs=argparse.REMAINDER,
        metavar="-- STEP ...",
        help="the step to run, with its options",
    )
    add_server_option(parser)


def _recipe_to_upload(given: str | None) -> str | None:
    """The recipe of a job if it is a local file; named recipes are uploaded with the program.

    Raises:
        UserError: neither a file nor a name. An absolute path may exist on the cluster only.
    """
    if given is None or is_remote(given):
        return None
    if Path(given).is_file():
        return given
    if not Path(given).is_absolute():
        find_recipe(given)
    return None
