"""A Ray session for a block of code: a local one on this machine, or a cluster's.

In: an address (the argument, else `RAY_ADDRESS`, which Ray sets inside a submitted job) or none.
Steps: join that cluster, or start Ray on this machine; run the block; shut down, also after an
error or Ctrl-C. Out: a session that `ray.data`, `ray.train` and `ray.tune` use. Errors of workers
are unwrapped in `cluster.worker_errors`.

Access to a local session: its ports listen on the loopback interface alone (`cluster.loopback`).
Whoever reaches them could run code, so Ray authenticates by a token, which by default it writes to
`~/.ray/auth_token`. Here the token is random, created once per process, and passed to Ray's
processes through their environment: nothing to set up, and nothing is written. `RAY_AUTH_MODE`,
`RAY_AUTH_TOKEN` and `RAY_AUTH_TOKEN_PATH` of the user take precedence.

Workers can import the installed package. For code that is not installed, Ray passes on the folder
of the script that was run, the working folder and `PYTHONPATH`, but nothing else of `sys.path`.
"""

import importlib
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from urllib.parse import urlsplit

import ray
from ray.exceptions import AuthenticationError

from cluster import local_ray
from cluster.lost_nodes import telling_of_lost_nodes
from cluster.ray_noise import quiet_loggers
from cluster.signals import one_interrupt
from cluster.watch import ending_with_ray
from cluster.worker_errors import links
from pipeline.errors import UserError, one_line

CONNECT_TIMEOUT_S = 5.0
"""Longest wait for the cluster's address to accept a connection."""

TOKEN_HINT = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
"""Remedy for a server with token authentication; Ray reads the three variables."""

_JOINING = {
    # Number of attempts to reach the cluster's control service, about a second each if it refuses;
    # 20 by default.
    "RAY_gcs_server_port_wait_time_s": "3"
}
"""Variables that Ray reads when it joins a cluster."""


@contextmanager
def connect(
    *,
    address: str | None = None,
    num_cpus: int | None = None,
    tells_of_lost_nodes: bool = False,
    loading: Sequence[str] = (),
) -> Iterator[None]:
    """Use a Ray session for the length of a `with` block.

    A session that this process already has is used as it is and left running.

    Args:
        address: `host:port` of a cluster that this machine is a node of, `auto` for the one that
            runs here, `local` for a local session. None: `RAY_ADDRESS`, else local.
        num_cpus: CPUs of a local session; None: all of the machine.
        tells_of_lost_nodes: whether to log each lost node; the workers of a training do it
            themselves, with what it cost.
        loading: modules that the block needs and that take seconds to import, in this order. They
            are while Ray starts, and beside the block where it does not need them yet.

    Raises:
        UserError: the cluster cannot be reached or refuses, or an argument is invalid.
    """
    if ray.is_initialized():
        yield
        return
    target = address or os.environ.get("RAY_ADDRESS") or "local"
    quiet_loggers()
    variables = local_ray.variables() if target == "local" else _JOINING
    with (
        _environment(variables),
        _imported_beside(loading),
        ending_with_ray() as watch,
        one_interrupt() as handle_signals,
    ):
        try:
            if target == "local":
                local_ray.start(num_cpus)
                watch.follow()
            else:
                _join(target, num_cpus)
            handle_signals()
            with telling_of_lost_nodes() if tells_of_lost_nodes else nullcontext():
                yield
        finally:
            watch.expect_end()
            ray.shutdown()


@contextmanager
def _imported_beside(modules: Sequence[str]) -> Iterator[None]:
    """Import modules in a thread beside the block; whoever needs one that fails gets the error."""
    with ThreadPoolExecutor(1, thread_name_prefix="imports") as pool:
        pool.map(importlib.import_module, modules)
        yield


def _join(address: str, num_cpus: int | None) -> None:
    if num_cpus is not None:
        raise UserError("--num-cpus", "applies only to a local Ray", "leave it out for a cluster")
    if address != "auto":
        _check_reachable(address)
    try:
        ray.init(address=address, logging_level=logging.WARNING)
    except (AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
        raise _refusal(address, error) from error


def _check_reachable(address: str) -> None:
    """Fail within seconds: Ray's own attempts take many minutes and end in a traceback.

    Raises:
        UserError: not `host:port`, or nothing accepts a connection there.
    """
    if "://" in address:
        raise UserError(
            address,
            "not a cluster's host:port",
            "for a job server (http://) use the submit command, or unset RAY_ADDRESS to run here",
        )
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or port is None:
        raise UserError(address, "a cluster's address is host:port, auto or local")
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise UserError(
            address,
            f"no Ray cluster answers ({error})",
            "check the address, or leave it out to run here",
        ) from error


def _refusal(address: str, error: BaseException) -> UserError:
    text = " ".join(str(link) for link in links(error))
    if isinstance(error, AuthenticationError) or "InvalidAuthToken" in text:
        return UserError(address, "the cluster requires a token", TOKEN_HINT)
    reason = one_line(error).rstrip(".")
    return UserError(
        address,
        f"cannot join the Ray cluster ({reason})",
        "run this on one of its nodes with its version of Ray, or use the submit command",
    )


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables that are not set yet; restore what Ray and we changed at the end."""
    names = [*variables, "RAY_AUTH_MODE"]
    before = {name: os.environ.get(name) for name in names}
    for name, value in variables.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = old
