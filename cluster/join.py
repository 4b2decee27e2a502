"""Wait until all nodes of a cluster have joined, as `python -m cluster.join`.

A batch system starts the nodes of a job one after another; a step that begins too early would find
too little room.
"""

import argparse
import sys
import time

import ray

from cluster.program import print_error
from cluster.session import connect
from pipeline.errors import INTERRUPTED, UserError

_ASK_EVERY_S = 0.5


def wait_for_nodes(num: int, timeout_s: float) -> str:
    """Wait until the connected Ray has at least `num` nodes; returns a line on what they have.

    Raises:
        UserError: fewer have joined within the time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        if len(nodes) >= num:
            break
        if time.monotonic() > deadline:
            here = ", ".join(sorted(node["NodeManagerHostname"] for node in nodes))
            raise UserError(
                "",
                f"{len(nodes)} of {num} nodes have joined within {timeout_s:g} s ({here})",
                "see why Ray does not start on the others, or allow more time",
            )
        time.sleep(_ASK_EVERY_S)
    totals = [sum(node["Resources"].get(name, 0) for node in nodes) for name in ("CPU", "GPU")]
    return "{} nodes have joined, with {:g} CPUs and {:g} GPUs".format(len(nodes), *totals)


def main() -> int:
    """Run as a program; returns the exit status, as `ray_job.main`."""
    parser = argparse.ArgumentParser(prog="cluster.join", description=__doc__)
    parser.add_argument("address", help="HOST:PORT of the cluster")
    parser.add_argument("--num", type=int, required=True, help="how many nodes")
    parser.add_argument("--timeout", type=float, required=True, help="longest wait in seconds")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.timeout
    while True:
        try:
            with connect(address=arguments.address):
                print(wait_for_nodes(arguments.num, deadline - time.monotonic()), flush=True)
            return 0
        except KeyboardInterrupt:
            return INTERRUPTED
        except UserError as error:
            if time.monotonic() > deadline:
                print_error(error)
                return 1
            time.sleep(_ASK_EVERY_S)


if __name__ == "__main__":
    sys.exit(main())
