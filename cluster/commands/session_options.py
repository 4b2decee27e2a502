"""Options of every step that runs on Ray, and the session for them."""

import argparse
from contextlib import AbstractContextManager

from pipeline.commands.step import positive


def add_session_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        help="Ray cluster that this machine is a node of: auto or HOST:PORT (default: RAY_ADDRESS, "
        "else a local Ray is started)",
    )
    parser.add_argument("--num-cpus", type=positive, help="CPUs for the local Ray (default: all)")


def session(arguments: argparse.Namespace) -> AbstractContextManager[None]:
    """A Ray session, which connects when it is entered."""
    from cluster.session import connect

    return connect(address=arguments.address, num_cpus=arguments.num_cpus)
