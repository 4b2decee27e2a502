"""`verify`: check every byte of a prepared data set."""

import argparse
import json
from dataclasses import asdict

from cluster.commands.session_options import add_session_options, session
from pipeline.commands.step import Step, path

FAULTS_FOUND = 3
"""Exit status if the data set is damaged."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=path, help="folder of the prepared data set")
    parser.add_argument(
        "--json-logs", action="store_true", help="progress and faults as JSON lines"
    )
    parser.add_argument(
        "--clean",
        action="store_true",
        help="in S3, also remove the parts of uploads that killed processes left unfinished",
    )
    add_session_options(parser)


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from pipeline.commands.summaries import faults_summary
    from pipeline.dataset import unfinished_uploads
    from pipeline.dataset import verify as checks

    removed = {}
    if arguments.clean:
        # First: a `prepare` that was killed has left no card, without which nothing is checked.
        unfinished_uploads.check_is_cleanable(arguments.data)
        removed["num_uploads_removed"] = unfinished_uploads.remove_all(arguments.data)
    faults = checks.verify(
        arguments.data,
        session=session(arguments, tells_of_lost_nodes=True),
        json_logs=arguments.json_logs,
        wait_s=arguments.wait_for_nodes,
    )
    if not arguments.clean:
        unfinished_uploads.report(arguments.data)
    if arguments.json_logs:
        for fault in faults:
            print(json.dumps({"event": "fault", **asdict(fault)}))
        print(json.dumps({"event": "summary", "num_faults": len(faults), **removed}))
    else:
        Console().print(faults_summary(faults, arguments.data))
    return FAULTS_FOUND if faults else 0


STEP = Step(
    name="verify",
    summary="Check every byte of a prepared data set against its card and index; exits with 3 if "
    "it is damaged. Run `prepare` again to repair only the damage.",
    example="s3://lab/esc50",
    add_options=add_options,
    run=run,
)
