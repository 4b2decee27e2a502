#!/usr/bin/env python3
"""Runs the steps of ast-ray, here or on a Ray cluster; `ray_job.py STEP --help` explains each.

A step is a file in a `commands/` folder: its options, and the function that does the work.
"""

import argparse
import sys
from collections.abc import Sequence

from cluster.commands import list_jobs, logs, stop
from cluster.commands.submit import submit_step
from cluster.program import print_error, program_name
from cluster.ray_noise import skip_lines_of_workers
from pipeline.commands import download, manifest, prepare, verify
from pipeline.errors import INTERRUPTED, UserError
from pipeline.terminal import log
from pipeline.version import VERSION
from trainer.commands import (
    cross_validate,
    ensemble,
    evaluate,
    export,
    import_checkpoint,
    report,
    search,
    serve,
    tag,
    train,
)

STEPS = (
    download.STEP,
    manifest.STEP,
    prepare.STEP,
    verify.STEP,
    train.STEP,
    evaluate.STEP,
    ensemble.STEP,
    cross_validate.STEP,
    search.STEP,
    report.STEP,
    import_checkpoint.STEP,
    export.STEP,
    tag.STEP,
    serve.STEP,
    submit_step(lambda command: make_parser().parse_args(command)),
    list_jobs.STEP,
    logs.STEP,
    stop.STEP,
)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line; it sets `run` to the function of the step."""
    parser = argparse.ArgumentParser(
        prog=program_name(),
        description="Train Audio Spectrogram Transformers: from audio in a folder or bucket to a "
        "report. Paths are local or s3://bucket/key, gs:// or az:// (endpoint and credentials come "
        "from the usual variables and files).",
    )
    parser.add_argument("--version", action="version", version=f"ast-ray {VERSION}")
    steps = parser.add_subparsers(title="steps", dest="command", required=True, metavar="STEP")
    for step in STEPS:
        step.add_to(steps)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one step.

    Returns:
        The exit status: 0; 1 after an explained error; 130 after Ctrl-C; 143 after SIGTERM to a
        training that has written its checkpoint; or what the step returns.
        An invalid argument exits with 2.
    """
    skip_lines_of_workers()
    arguments = make_parser().parse_args(argv)
    log.set_up(arguments.log_level)
    try:
        return arguments.run(arguments) or 0
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return INTERRUPTED
    except UserError as error:
        print_error(error)
        return error.status
    except Exception as error:
        from cluster.worker_errors import unwrap

        cause = unwrap(error)
        if not isinstance(cause, UserError):
            raise
        print_error(cause)
        return cause.status


if __name__ == "__main__":
    sys.exit(main())
