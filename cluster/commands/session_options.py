"""Options of every step that runs on Ray, and the session for them."""

import argparse
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager

from pipeline.commands.step import positive
from pipeline.on_ray.settings import WAIT_FOR_NODES_S


def add_session_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        help="Ray cluster that this machine is a node of: auto or HOST:PORT (default: RAY_ADDRESS, "
        "else a local Ray is started)",
    )
    parser.add_argument("--num-cpus", type=positive, help="CPUs for the local Ray (default: all)")
    parser.add_argument(
        "--wait-for-nodes",
        type=positive,
        default=int(WAIT_FOR_NODES_S),
        metavar="SECONDS",
        help="longest wait for nodes that the cluster's autoscaler starts (default: %(default)s)",
    )


def has_cluster(arguments: argparse.Namespace) -> bool:
    """Whether `session` joins a cluster, and does not start a Ray on this machine."""
    address = arguments.address or os.environ.get("RAY_ADDRESS") or "local"
    return bool(address != "local")


def session(
    arguments: argparse.Namespace,
    *,
    tells_of_lost_nodes: bool = False,
    loading: Sequence[str] = (),
) -> AbstractContextManager[None]:
    """A Ray session, which connects when it is entered: see `cluster.session.connect`."""
    from cluster.session import connect

    return connect(
        address=arguments.address,
        num_cpus=arguments.num_cpus,
        tells_of_lost_nodes=tells_of_lost_nodes,
        loading=loading,
    )
