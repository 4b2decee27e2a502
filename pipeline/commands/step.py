"""A step of the command line: its name, options and function; and types of options."""

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.storage.paths import absolute


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A step, defined by a file in a `commands/` folder."""

    name: str
    summary: str
    """One or two sentences for `--help`."""
    example: str
    """Example arguments, which follow the name on the command line."""
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]
    """Does the work and prints the result; returns the exit status, None for 0."""

    def add_to(self, steps: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
        """Add the step to the command line."""
        parser = steps.add_parser(
            self.name,
            help=self.summary,
            description=self.summary,
            epilog=f"example: %(prog)s {self.example}",
        )
        self.add_options(parser)
        verbosity = parser.add_mutually_exclusive_group()
        verbosity.add_argument(
            "--quiet",
            dest="log_level",
            action="store_const",
            const=logging.WARNING,
            help="show warnings, errors and results, but no notes and no progress",
        )
        verbosity.add_argument(
            "--verbose",
            dest="log_level",
            action="store_const",
            const=logging.DEBUG,
            help="show details, too",
        )
        parser.set_defaults(run=self.run, log_level=logging.INFO)


def path(text: str) -> str:
    """An absolute path, local or in a bucket."""
    try:
        return absolute(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {text!r}")
    return value


def seconds(text: str) -> float:
    """A number of seconds above 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text!r}")
    return value


def pair(text: str) -> tuple[str, str]:
    """`NAME=COLUMN`."""
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise argparse.ArgumentTypeError(f"must be NAME=COLUMN, got {text!r}")
    return name, value
