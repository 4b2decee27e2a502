"""What a cluster can grow to, and waiting for nodes: with an autoscaler that a test plays."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import ray

from pipeline.on_ray import autoscaler
from pipeline.on_ray import nodes as on_ray
from pipeline.on_ray.autoscaler import Answer, Growth, NodeType
from pipeline.on_ray.nodes import Need, Nodes, NoSuchNodeError, room, wait_for_nodes
from tests.support.errors import assert_notes, refused

HEAD = {"node:__internal_head__": 1.0, "CPU": 0.0, "memory": 8e9}
CPU_NODE = {"CPU": 4.0, "memory": 8e9}
GPU_NODE = {"CPU": 8.0, "GPU": 2.0, "memory": 8e9}
TYPES = (
    NodeType(name="small", resources=CPU_NODE, max_num=3),
    NodeType(name="gpus", resources=GPU_NODE, max_num=2),
)
NEED = Need(num=4, each={"CPU": 1.0, "GPU": 1.0}, what="4 workers", remedy="ask for less")


def nodes(*live: Mapping[str, float], growth: Growth | None = None) -> Nodes:
    return Nodes(live=(HEAD, *live), growth=growth)


def test_a_cluster_counts_for_what_it_can_grow_to() -> None:
    grown = nodes(growth=Growth(node_types=TYPES, max_nodes=5))
    assert room(grown.possible(NEED.each), NEED.each) == 4
    assert room(grown.possible({"CPU": 1.0}), {"CPU": 1.0}) == 3 * 4 + 2 * 8
    # Nodes that are there are not counted twice, and others than the autoscaler's are counted.
    there = nodes(GPU_NODE, {"CPU": 1.0, "GPU": 1.0}, growth=grown.growth)
    assert room(there.possible(NEED.each), NEED.each) == 5
    assert room(nodes(GPU_NODE).possible(NEED.each), NEED.each) == 2


def test_under_a_common_limit_the_useful_nodes_are_counted_first() -> None:
    grown = nodes(growth=Growth(node_types=TYPES, max_nodes=2))
    assert room(grown.possible(NEED.each), NEED.each) == 4
    assert grown.has("GPU")
    assert not nodes(growth=Growth(node_types=TYPES[:1], max_nodes=2)).has("GPU")


def test_a_share_of_a_gpu_lies_on_one() -> None:
    assert room([{"CPU": 8.0, "GPU": 2.0}], {"CPU": 1.0, "GPU": 0.4}) == 4


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[Any]]]:
    """Play an autoscaler: the live nodes at each look, and its answer; returns the requests."""

    def set_up(*looks: Sequence[Mapping[str, float]], answer: Answer) -> list[list[Any]]:
        requests: list[list[Any]] = []
        left = list(looks)

        def alive() -> list[dict[str, Any]]:
            now = left.pop(0) if len(left) > 1 else left[0]
            return [{"Alive": True, "NodeID": "", "Resources": node} for node in now]

        @contextmanager
        def asking() -> Iterator[Callable[[list[Any]], None]]:
            try:
                yield requests.append
            finally:
                requests.append([])

        monkeypatch.setattr(ray, "nodes", alive)
        monkeypatch.setattr(autoscaler, "asking", asking)
        monkeypatch.setattr(autoscaler, "answer", lambda each: answer)
        monkeypatch.setattr(on_ray, "_LOOK_EVERY_S", 0.001)
        return requests

    return set_up


def test_nodes_are_asked_for_and_waited_for(
    play: Callable[..., list[list[Any]]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="pipeline")
    starting = Answer(is_refused=False, is_starting=True)
    requests = play([HEAD], [HEAD, GPU_NODE], [HEAD, GPU_NODE, GPU_NODE], answer=starting)
    wait_for_nodes(NEED, nodes(growth=Growth(node_types=TYPES, max_nodes=5)), wait_s=60)
    assert requests == [[NEED.each] * 4, []]
    notes = [record.getMessage() for record in caplog.records]
    assert_notes(notes, ["4 workers: 0 of 4"], ["4 workers: 2 of 4"], ["4 workers: all there"])


def test_waiting_ends_at_a_set_time(play: Callable[..., list[list[Any]]]) -> None:
    failing = Answer(is_refused=False, is_starting=False, failure="no such machines left")
    requests = play([HEAD, GPU_NODE], answer=failing)
    growth = Growth(node_types=TYPES, max_nodes=5)
    with refused(
        "", "4 workers", "2 of 4", "2 nodes", "2 GPUs", failing.failure, remedy="--wait-for-nodes"
    ):
        wait_for_nodes(NEED, nodes(growth=growth), wait_s=0.01)
    assert requests[-1] == []


def test_what_no_node_type_holds_is_refused_at_once(
    play: Callable[..., list[list[Any]]],
) -> None:
    requests = play([HEAD], answer=Answer(is_refused=False, is_starting=False))
    for growth in (None, Growth(node_types=TYPES[:1], max_nodes=5)):
        with refused("", "4 workers", "1 node", type=NoSuchNodeError, remedy="ask for less"):
            wait_for_nodes(NEED, nodes(growth=growth), wait_s=60)
    assert requests == []


@pytest.mark.parametrize("is_refused", [True, False])
def test_an_autoscaler_of_unknown_nodes_refuses_itself_or_starts_nothing(
    play: Callable[..., list[list[Any]]], monkeypatch: pytest.MonkeyPatch, is_refused: bool
) -> None:
    monkeypatch.setattr(on_ray, "_NO_ANSWER_S", 60.0 if is_refused else 0.01)
    requests = play([HEAD], answer=Answer(is_refused=is_refused, is_starting=False))
    with pytest.raises(NoSuchNodeError):
        wait_for_nodes(NEED, nodes(growth=Growth(node_types=None)), wait_s=60)
    assert requests == [[NEED.each] * 4, []]


def test_node_types_are_read_as_ray_configures_them() -> None:
    config = {
        "max_workers": 3,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 2}, "max_workers": 0},
            "gpus": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 10},
        },
    }
    [kind] = autoscaler._parse(config).node_types or ()
    assert kind == NodeType(name="gpus", resources={"CPU": 8.0, "GPU": 1.0}, max_num=3)
    # Of a machine that Ray does not know, the configuration says nothing.
    config["available_node_types"]["gpus"]["resources"] = {}  # type: ignore[index]
    assert autoscaler._parse(config).node_types is None
