"""Keep a local Ray on the loopback interface, so that no other machine reaches its ports.

Ray's processes listen on every interface, unless the address of their node is 127.0.0.1. `ray.init`
replaces that address by one that others reach, except where Ray takes the machine for one without
clusters, as on a desktop with macOS: Ray 2.60 has no other switch, and reads this one on import.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from ray._private import ray_constants

VARIABLES = {
    # The interface on which workers of a training listen for each other.
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
}
"""Environment of a local session's processes."""


@contextmanager
def starting_on_loopback() -> Iterator[None]:
    """A Ray that is started in this block has a node with the address 127.0.0.1."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
