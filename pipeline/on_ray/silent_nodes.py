"""Which nodes are lost although Ray still counts their room, as it does for 15 to 25 s.

A node whose processes were killed refuses connections at once, and a machine that is gone answers
none. Work that asks for room on such a node only waits until Ray's own health checks fail.
"""

import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray

_ANSWER_S = 2.0
"""Longest wait for a node to accept a connection; the kernel does, however busy the processes."""
_AT_ONCE = 64


def silent_nodes() -> dict[str, str]:
    """Nodes that Ray takes for alive but that accept no connection: addresses by ids."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = list(pool.map(_answers, nodes))
    return {
        node["NodeID"]: node["NodeManagerAddress"]
        for node, is_there in zip(nodes, answers, strict=True)
        if not is_there
    }


def _answers(node: Mapping[str, Any]) -> bool:
    try:
        address = node["NodeManagerAddress"], node["NodeManagerPort"]
        socket.create_connection(address, timeout=_ANSWER_S).close()
    except OSError:
        return False
    return True
