"""A Ray cluster on this machine whose nodes are added and killed by a test."""

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.gcs_pb2 import GcsNodeInfo  # type: ignore[attr-defined]

from tests.support.ray_head import free_ports
from tests.support.steps import PROJECT, processes_in_session

START_S = 240.0
_RAY = (sys.executable, "-m", "tests.support.patient_ray", "start", "--block")
_ALIVE = GcsNodeInfo.GcsNodeState.ALIVE
_AGENT_PORTS = (
    "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port",
    "runtime-env-agent-port",
)  # fmt: skip
"""Two nodes of a machine cannot share them. Left to choose, an agent must do so within 15 s."""
_SMALL = ("--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=100000000")


@dataclass(frozen=True)
class _Node:
    name: str
    leader: "subprocess.Popen[bytes]"
    options: tuple[str, ...]
    """Those it was added with."""


class Nodes:
    """Nodes with one CPU each, beside a head without any."""

    def __init__(self, address: str, environment: dict[str, str], log: Path) -> None:
        self.address = address
        self._environment = environment
        self.log = log
        self._nodes: list[_Node] = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._nodes)

    def start(self, *options: str) -> "subprocess.Popen[bytes]":
        """Lead a session with all processes of a node."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*_RAY, *_SMALL, "--node-ip-address=127.0.0.1", *options],
                env=self._environment,
                cwd=PROJECT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def add(self, *more: str) -> None:
        ports = zip(_AGENT_PORTS, free_ports(len(_AGENT_PORTS)), strict=True)
        options = [f"--{name}={port}" for name, port in ports]
        name = f"node-{next(self._numbers)}"
        join = ("--num-cpus=1", f"--address={self.address}", f"--node-name={name}")
        self._nodes.append(_Node(name, self.start(*join, *options, *more), more))

    def wait_until_up(self) -> None:
        """Wait until the cluster has all nodes."""
        self.wait_for(self._are_up, START_S)

    def _are_up(self) -> bool:
        alive = {node.node_name for node in _nodes_of(self.address) if node.state == _ALIVE}
        return alive >= {node.name for node in self._nodes}

    def wait_for(self, is_so: Callable[[], bool], timeout_s: float) -> None:
        """Wait until it is so; nodes that could not start meanwhile are started again."""

        def look() -> bool:
            self._restart_ended()
            return is_so()

        wait_for(look, timeout_s)

    def _restart_ended(self) -> None:
        for node in [one for one in self._nodes if one.leader.poll() is not None]:
            self._nodes.remove(node)
            kill_session(node.leader)
            self.add(*node.options)

    def kill(self, number: int) -> bool:
        """End all processes of a node at once, as if its machine were switched off.

        Returns whether the node had joined the cluster before.
        """
        node = self._nodes.pop(number)
        kill_session(node.leader)
        return node.name in {one.node_name for one in _nodes_of(self.address)}

    def kill_one_with(self, words: bytes) -> None:
        """Kill a node while it has a process with these words in its command line."""

        def has_killed() -> bool:
            for number, node in enumerate(self._nodes):
                if _has_process(node, words):
                    # Nothing may end between the look and the kill.
                    _signal(node, signal.SIGSTOP)
                    if _has_process(node, words):
                        self.kill(number)
                        return True
                    _signal(node, signal.SIGCONT)
            return False

        wait_for(has_killed)

    def num_lost(self) -> int:
        """How many nodes that had joined are lost, as the cluster knows."""
        return sum(node.state != _ALIVE for node in _nodes_of(self.address))

    def close(self) -> None:
        while self._nodes:
            self.kill(0)


def _has_process(node: _Node, words: bytes) -> bool:
    for process in processes_in_session(node.leader.pid):
        with contextlib.suppress(OSError):
            if words in Path(f"/proc/{process}/cmdline").read_bytes():
                return True
    return False


def _signal(node: _Node, number: signal.Signals) -> None:
    for process in processes_in_session(node.leader.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def kill_session(leader: "subprocess.Popen[bytes]") -> None:
    for process in processes_in_session(leader.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    leader.wait(60)


@contextlib.contextmanager
def own_nodes(folder: str, num: int, variables: Mapping[str, str] | None = None) -> Iterator[Nodes]:
    """A cluster with some nodes.

    Args:
        folder: of its files; short, as sockets are in it.
        num: how many nodes beside the head.
        variables: of the environment of all nodes, such as those of a storage.
    """
    without = ("RAY_", "PYTHONDONTWRITEBYTECODE", "AWS_", "CUDA_VISIBLE_DEVICES")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(without)}
    environment |= {"RAY_AUTH_MODE": "disabled", **(variables or {})}
    names = ("port", "ray-client-server-port", *_AGENT_PORTS)
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    nodes = Nodes(f"127.0.0.1:{ports['port']}", environment, Path(folder, "nodes.log"))
    head = nodes.start(
        "--head",
        "--num-cpus=0",
        "--include-dashboard=false",
        "--disable-usage-stats",
        f"--temp-dir={folder}/ray",
        *(f"--{name}={port}" for name, port in ports.items()),
    )
    try:
        # A client of a head that does not listen yet would not come back for a minute.
        wait_for(lambda: _answers(ports["port"]))
        wait_for(lambda: len(_nodes_of(nodes.address)) == 1)
        for _ in range(num):
            nodes.add()
        nodes.wait_until_up()
        yield nodes
    finally:
        print(nodes.log.read_text(errors="replace"))  # shown if a test has failed
        nodes.close()
        kill_session(head)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _nodes_of(address: str) -> list[GcsNodeInfo]:
    """All nodes that the cluster has had; none while it does not answer."""
    with contextlib.suppress(Exception):
        return list(GcsClient(address=address).get_all_node_info().values())
    return []


def wait_for(is_so: Callable[[], bool], timeout_s: float = START_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"not so within {timeout_s:g} s"
        time.sleep(0.1)


def come_and_go(
    nodes: Nodes,
    num_done: Callable[[], int],
    seed: int,
    *,
    num_events: int,
    most: int,
    enough: int = 2,
) -> int:
    """Kill or add a node at random, some time after the work has gone on since the last time.

    It has once `enough` more is done: more than could be finished without a node that was lost.
    There is always one node, and never more than `most`. Returns how many were killed that had
    joined the cluster: one that is killed while it starts was never part of it.
    """
    rng = random.Random(seed)
    num_killed = 0
    for _ in range(num_events):
        before = num_done()
        nodes.wait_for(lambda before=before: num_done() >= before + enough, 600)  # type: ignore[misc]
        time.sleep(rng.uniform(0, 2))
        if len(nodes) == 1 or (len(nodes) < most and rng.random() < 0.5):
            print("a node comes", flush=True)
            nodes.add()
        else:
            print("a node goes", flush=True)
            num_killed += nodes.kill(rng.randrange(len(nodes)))
    return num_killed
