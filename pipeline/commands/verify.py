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
    add_session_options(parser)


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from pipeline.commands.summaries import faults_summary
    from pipeline.dataset import verify as checks

    faults = checks.verify(
        arguments.data,
        session=session(arguments),
        json_logs=arguments.json_logs,
        wait_s=arguments.wait_for_nodes,
    )
    if arguments.json_logs:
        for fault in faults:
            print(json.dumps({"event": "fault", **asdict(fault)}))
        print(json.dumps({"event": "summary", "num_faults": len(faults)}))
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
