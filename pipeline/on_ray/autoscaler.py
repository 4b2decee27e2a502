"""What nodes an autoscaler may start, and what it says of those it was asked for.

Ray 2.60 has a public function to ask for nodes, `ray.autoscaler.sdk.request_resources`, but none
that says which there may be. The autoscaler of `ray up` and `ray start --autoscaling-config` reads
them from a file of the head node, named on its command line. That of Kubernetes runs in another
container, out of sight: there only its answer to a request tells. The second version of the
autoscaler writes into the GCS what it cannot start; the first one only starts nothing.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.autoscaler.sdk import request_resources
from ray.core.generated import autoscaler_pb2
from ray.experimental.internal_kv import _internal_kv_get

from pipeline.on_ray.head_node import HEAD_NODE

_logger = logging.getLogger(__name__)

_MONITOR = "monitor.py"
"""The process of the head node that is, or would be, the autoscaler."""
_STATUS_KEY = "__autoscaling_status"
"""Where the first autoscaler writes what it does."""
_NODE_GROUP = "ray.io/node-group"
"""Label of a node that a cluster's manager started: its type."""
_HEAD_TASK_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeType:
    """Nodes of one kind that an autoscaler may start."""

    name: str
    resources: Mapping[str, float]
    max_num: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """What an autoscaler may add to a cluster."""

    node_types: tuple[NodeType, ...] | None
    """None: it is not known which."""
    max_nodes: int = 0
    """Of all types together, without the head node."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the autoscaler says about a request."""

    is_refused: bool
    """No type of node can hold it."""
    is_starting: bool
    """It starts nodes."""
    failure: str = ""
    """Why it could not start a node lately."""


def growth(nodes: Sequence[Mapping[str, Any]]) -> Growth | None:
    """What may be added to the connected cluster; None if it has no autoscaler.

    Args:
        nodes: the live ones, from `ray.nodes()`.
    """
    if not ray.is_initialized():
        return None
    config = _on_head_node(nodes)
    if config is not None:
        return _parse(config)
    if any(_NODE_GROUP in node.get("Labels", {}) for node in nodes):
        return Growth(node_types=None)
    return None


def _on_head_node(nodes: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """`_read_config`, on the head node of the cluster."""
    context = ray.get_runtime_context()
    address = context.gcs_address
    heads = [node["NodeID"] for node in nodes if HEAD_NODE in node["Resources"]]
    if context.get_node_id() in heads:
        return _read_config(address)
    task = ray.remote(num_cpus=0, resources={HEAD_NODE: 0.001})(_read_config)
    with suppress(ray.exceptions.RayError):
        config: dict[str, Any] | None = ray.get(task.remote(address), timeout=_HEAD_TASK_S)
        return config
    _logger.debug("the head node does not say which nodes may be started")
    return None


def _read_config(gcs_address: str) -> dict[str, Any] | None:
    """What the autoscaler of this machine that serves the cluster was started with."""
    port = gcs_address.rpartition(":")[2]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError, ValueError, yaml.YAMLError):
            words = path.read_text().split("\0")
            options = dict(
                word.split("=", 1) for word in words if word.startswith("--") and "=" in word
            )
            is_monitor = any(word.endswith(f"/{_MONITOR}") for word in words)
            config = options.get("--autoscaling-config")
            if is_monitor and config and options.get("--gcs-address", "").endswith(f":{port}"):
                content = yaml.safe_load(Path(config).expanduser().read_text())
                return content if isinstance(content, dict) else None
    return None


def _parse(config: Mapping[str, Any]) -> Growth:
    """The node types of a configuration, but for the head node's."""
    max_nodes = int(config.get("max_workers", 0))
    node_types = tuple(
        NodeType(
            name=name,
            resources={key: float(value) for key, value in kind.get("resources", {}).items()},
            max_num=min(int(kind.get("max_workers", max_nodes)), max_nodes),
        )
        for name, kind in config.get("available_node_types", {}).items()
        if name != config.get("head_node_type")
    )
    if not all(kind.resources for kind in node_types):
        # As a cloud's machine that Ray does not know: what it has is seen once it is there.
        return Growth(node_types=None)
    return Growth(node_types=node_types, max_nodes=max_nodes)


@contextmanager
def asking() -> Iterator[Any]:
    """Ask for nodes in a `with` block, by calling what it yields with bundles of resources.

    Ask again now and then: the autoscaler knows only the latest request, of whichever job. It is
    taken back at the end.
    """
    try:
        yield lambda bundles: request_resources(bundles=[dict(bundle) for bundle in bundles])
    finally:
        with suppress(Exception):  # the cluster may be gone, and an error says so
            request_resources(bundles=[])


def answer(bundle: Mapping[str, float]) -> Answer:
    """What the autoscaler says about a request for some of this bundle of resources."""
    reply = autoscaler_pb2.GetClusterStatusReply()  # type: ignore[attr-defined]
    client = ray._raylet.GcsClient(  # type: ignore[attr-defined]
        address=ray.get_runtime_context().gcs_address
    )
    reply.ParseFromString(client.get_cluster_status())
    state = reply.autoscaling_state
    wanted = {name: float(amount) for name, amount in bundle.items()}
    is_refused = any(
        dict(request.request.resources_bundle) == wanted
        for constraint in state.infeasible_cluster_resource_constraints
        for request in constraint.resource_requests
    )
    failures = [request.reason for request in state.failed_instance_requests]
    status = json.loads(_internal_kv_get(_STATUS_KEY) or b"{}").get("autoscaler_report") or {}
    starting = [
        *state.pending_instance_requests,
        *state.pending_instances,
        *status.get("pending_launches", ()),
        *status.get("pending_nodes", ()),
    ]
    return Answer(
        is_refused=is_refused,
        is_starting=bool(starting),
        failure=failures[-1] if failures else "",
    )
