"""The nodes of a cluster: which are there, which an autoscaler may add, and waiting for them.

A cluster with an autoscaler may have hardly any nodes when a step starts. What fits is counted on
the nodes that it can grow to; work begins once what it needs at least is there.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from pipeline.errors import UserError
from pipeline.on_ray import autoscaler
from pipeline.on_ray.autoscaler import Answer, Growth
from pipeline.on_ray.head_node import HEAD_NODE

_logger = logging.getLogger(__name__)

Resources = Mapping[str, float]
"""Amounts by name, as Ray has them: `CPU`, `GPU`, `memory` in bytes, ..."""

NODE_ID_LABEL = "ray.io/node-id"
"""Label of every node, by which tasks can choose it."""

_LOOK_EVERY_S = 1.0
_ASK_EVERY_S = 5.0
"""Each time the request is sent again, as another job may have replaced it."""
_SAY_EVERY_S = 60.0
_NO_ANSWER_S = 30.0
"""So long after a request, an autoscaler that starts no node will not: it looks every 5 s."""


class NoSuchNodeError(UserError):
    """No node that the cluster has or may start can hold what is needed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """Processes that need room on nodes, each on one."""

    num: int
    each: Resources
    """What each takes of its node."""
    what: str
    """In words, such as `4 workers with 1 CPU each`."""
    remedy: str
    """What to do if no node can hold it."""
    without_gpus: bool = False
    """Only nodes without GPUs count."""

    def counted(self, nodes: Sequence[Resources]) -> list[Resources]:
        """Those of the nodes that count."""
        return [node for node in nodes if not (self.without_gpus and node.get("GPU", 0))]


@dataclass(frozen=True, kw_only=True, slots=True)
class Nodes:
    """The resources of the live nodes, and what may be added to them."""

    live: tuple[Resources, ...]
    growth: Growth | None

    @property
    def is_open(self) -> bool:
        """Whether nodes of unknown kinds may be added."""
        return self.growth is not None and self.growth.node_types is None

    def possible(self, each: Resources) -> list[Resources]:
        """The live nodes and those of known kinds that may be added.

        If there may not be all of them at once, those with most room for `each` come first.
        """
        nodes = list(self.live)
        if self.growth is None or self.growth.node_types is None:
            return nodes
        left = self.growth.max_nodes - sum(1 for node in nodes if not _is_head(node))
        kinds = sorted(self.growth.node_types, key=lambda kind: -_room_on(kind.resources, each))
        for kind in kinds:
            num_live = sum(_is_alike(node, kind.resources) for node in self.live)
            num = max(0, min(kind.max_num - num_live, left))
            nodes += [kind.resources] * num
            left -= num
        return nodes

    def without_gpus(self) -> "Nodes":
        """Those without GPUs, and how many of them may be added beside the others."""
        live = tuple(node for node in self.live if not node.get("GPU", 0))
        if self.growth is None or self.growth.node_types is None:
            return Nodes(live=live, growth=self.growth)
        kinds = tuple(k for k in self.growth.node_types if not k.resources.get("GPU", 0))
        others = sum(1 for node in self.live if node.get("GPU", 0) and not _is_head(node))
        return Nodes(
            live=live,
            growth=Growth(node_types=kinds, max_nodes=self.growth.max_nodes - others),
        )

    def has(self, resource: str) -> bool:
        """Whether a live node or one that may be added has some of a resource."""
        return any(node.get(resource, 0) > 0 for node in self.possible({resource: 1}))

    def __str__(self) -> str:
        cpus, gpus = (int(sum(node.get(name, 0) for node in self.live)) for name in ("CPU", "GPU"))
        text = f"{plural(len(self.live), 'node')}, {plural(cpus, 'CPU')} and {plural(gpus, 'GPU')}"
        if self.growth is None:
            return text
        if self.growth.node_types is None:
            return f"{text}, and an autoscaler"
        kinds = ", ".join(
            f"{kind.max_num} x {kind.name} ({_in_words(kind.resources)})"
            for kind in self.growth.node_types
        )
        return f"{text}, and an autoscaler for up to {self.growth.max_nodes} nodes: {kinds}"


def cluster_nodes() -> Nodes:
    """The nodes of the connected cluster, and what may be added to them."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    return Nodes(
        live=tuple(node["Resources"] for node in alive),
        growth=autoscaler.growth(alive),
    )


def room(nodes: Sequence[Resources], each: Resources) -> int:
    """How many processes fit on the nodes; leftovers of several do not add up to one."""
    return sum(_room_on(node, each) for node in nodes)


def _room_on(node: Resources, each: Resources) -> int:
    # Ray knows the memory of every live node, but a cluster's configuration need not say it.
    counted = [
        name for name, amount in each.items() if amount and (name in node or name != "memory")
    ]
    return int(min(_parts(node.get(name, 0), each[name]) for name in counted))


def _parts(amount: float, each: float) -> float:
    """How often a node's amount holds another; a share of a unit, as of a GPU, lies in one unit."""
    if each < 1:
        return math.floor(amount) * math.floor(1 / each + 1e-9)
    return amount // each


def wait_for_nodes(need: Need, nodes: Nodes, *, wait_s: float) -> None:
    """Have nodes started until there is room for all; returns at once if there is.

    Args:
        need: what must fit.
        nodes: the cluster; one without an autoscaler is not waited for.
        wait_s: give up after so long.

    Raises:
        NoSuchNodeError: nothing that the cluster may start can hold it.
        UserError: the nodes did not come in time.
    """
    if need.without_gpus:
        nodes, elsewhere = nodes.without_gpus(), room(nodes.live, need.each)
    else:
        elsewhere = 0
    there = room(nodes.live, need.each)
    if there >= need.num:
        return
    if not nodes.is_open and room(nodes.possible(need.each), need.each) < need.num:
        raise _no_such_node(need, nodes)
    start = time.monotonic()
    said: tuple[int, float] | None = None
    asked_s = -math.inf
    with autoscaler.asking() as ask:
        while there < need.num:
            waited_s = time.monotonic() - start
            if waited_s - asked_s >= _ASK_EVERY_S:
                # What fits on nodes that do not count is asked for, too: else it would suffice.
                ask([need.each] * (need.num + elsewhere))
                asked_s = waited_s
            if said is None or said[0] != there or waited_s - said[1] >= _SAY_EVERY_S:
                _logger.info("waiting for %s: %d of %d there", need.what, there, need.num)
                said = there, waited_s
            time.sleep(_LOOK_EVERY_S)
            there = min(room(need.counted(_live()), need.each), need.num)
            answer = autoscaler.answer(need.each)
            if there < need.num and nodes.is_open and _is_refusal(answer, waited_s):
                raise _no_such_node(need, nodes)
            if there < need.num and waited_s >= wait_s:
                raise _late(need, there, waited_s, answer)
    _logger.info("%s: all there", need.what)


def _is_refusal(answer: Answer, waited_s: float) -> bool:
    is_silent = not answer.is_starting and not answer.failure and waited_s >= _NO_ANSWER_S
    return answer.is_refused or is_silent


def _live() -> list[Resources]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _no_such_node(need: Need, nodes: Nodes) -> NoSuchNodeError:
    return NoSuchNodeError(
        "",
        f"no room for {need.what} in this cluster of {nodes}",
        need.remedy,
    )


def _late(need: Need, there: int, waited_s: float, answer: Answer) -> UserError:
    now = Nodes(live=tuple(_live()), growth=None)
    why = f"; the autoscaler says: {answer.failure}" if answer.failure else ""
    return UserError(
        "",
        f"waited {waited_s:.0f} s for {need.what}: {there} of {need.num} there, on {now}{why}",
        "see `ray status` on the cluster, or wait longer with --wait-for-nodes",
    )


def plural(count: float, noun: str) -> str:
    """`1 node`, `2 nodes`, `0.5 nodes`."""
    return f"{count:g} {noun}" + ("" if count == 1 else "s")


def _is_head(node: Resources) -> bool:
    return HEAD_NODE in node


def _is_alike(node: Resources, kind: Resources) -> bool:
    """Whether a live node is of a kind, as far as its CPUs and GPUs tell."""
    same = all(node.get(name, 0) == kind.get(name, 0) for name in ("CPU", "GPU"))
    return same and not _is_head(node)


def _in_words(resources: Resources) -> str:
    amounts = {name: resources.get(name, 0) for name in ("CPU", "GPU")}
    return ", ".join(plural(int(amount), name) for name, amount in amounts.items() if amount)
