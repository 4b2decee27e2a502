"""What a cluster can grow to, and waiting for nodes: with an autoscaler that a test plays."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import ray

from pipeline.on_ray import autoscaler, tasks
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


def test_nodes_are_of_a_type_by_their_cpus_and_gpus() -> None:
    growth = Growth(node_types=TYPES, max_nodes=5)
    assert room(nodes({"CPU": 8.0}, growth=growth).possible(NEED.each), NEED.each) == 4
    head = Nodes(live=({**HEAD, **CPU_NODE},), growth=Growth(node_types=TYPES[:1], max_nodes=5))
    assert room(head.possible({"CPU": 1.0}), {"CPU": 1.0}) == 4 + 3 * 4


def test_what_nobody_needs_or_knows_limits_nothing() -> None:
    assert room([{"CPU": 2.0}], {"CPU": 1.0, "GPU": 0.0, "memory": 1e9}) == 2


def test_under_a_common_limit_the_useful_nodes_are_counted_first() -> None:
    grown = nodes(growth=Growth(node_types=TYPES, max_nodes=2))
    assert room(grown.possible(NEED.each), NEED.each) == 4
    assert grown.has("GPU")
    one_more = nodes(growth=Growth(node_types=TYPES, max_nodes=3))
    assert room(one_more.possible({"CPU": 1.0}), {"CPU": 1.0}) == 2 * 8 + 4
    # One was started by hand beyond the type's limit.
    more = nodes(*[GPU_NODE] * 3, growth=Growth(node_types=TYPES, max_nodes=5))
    assert room(more.possible({"CPU": 1.0}), {"CPU": 1.0}) == 3 * 8 + 2 * 4
    assert not nodes(growth=Growth(node_types=TYPES[:1], max_nodes=2)).has("GPU")


def test_a_share_of_a_gpu_lies_on_one() -> None:
    assert room([{"CPU": 8.0, "GPU": 2.0}], {"CPU": 1.0, "GPU": 0.6}) == 2
    assert room([{"CPU": 64.0, "GPU": 1.0}], {"CPU": 1.0, "GPU": 1 / 49}) == 49


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[Any]]]:
    """Play an autoscaler: the live nodes at each look, and its answer; returns the requests."""

    def set_up(*looks: Sequence[Mapping[str, float]], answer: Answer) -> list[list[Any]]:
        requests: list[list[Any]] = []
        left = list(looks)

        def alive() -> list[dict[str, Any]]:
            now = left.pop(0) if len(left) > 1 else left[0]
            return [
                {"Alive": True, "NodeID": f"{node.get('id', 0):g}", "Resources": node}
                for node in now
            ]

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

    monkeypatch.setattr(on_ray, "_ASK_EVERY_S", 600.0)
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


def test_requests_and_notes_are_repeated(
    play: Callable[..., list[list[Any]]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another job may have replaced the request, and a long silence looks like a hang."""
    caplog.set_level("INFO", logger="pipeline")
    starting = Answer(is_refused=False, is_starting=True)
    growth = Growth(node_types=TYPES, max_nodes=5)
    looks = [[HEAD], [HEAD], [HEAD, GPU_NODE, GPU_NODE]]
    for name in ("_ASK_EVERY_S", "_SAY_EVERY_S"):
        monkeypatch.setattr(on_ray, name, 0.0)
    requests = play(*looks, answer=starting)
    wait_for_nodes(NEED, nodes(growth=growth), wait_s=60)
    assert requests == [[NEED.each] * 4] * 3 + [[]]
    notes = [record.getMessage() for record in caplog.records]
    assert_notes(notes, *[["0 of 4"]] * 3, ["all there"])
    # Nothing is asked for that is there.
    wait_for_nodes(NEED, nodes(GPU_NODE, GPU_NODE, growth=growth), wait_s=60)
    assert len(requests) == 4


def test_nodes_without_gpus_are_waited_for_beside_those_that_have_room(
    play: Callable[..., list[list[Any]]],
) -> None:
    """The request holds what fits on the others, too: they would do, as the autoscaler sees it."""
    each = {"CPU": 1.0}
    need = Need(num=1, each=each, what="a task", remedy="add nodes", without_gpus=True)
    starting = Answer(is_refused=False, is_starting=True)
    requests = play([HEAD, GPU_NODE], [HEAD, GPU_NODE, CPU_NODE], answer=starting)
    wait_for_nodes(need, nodes(GPU_NODE, growth=Growth(node_types=TYPES, max_nodes=2)), wait_s=60)
    assert requests == [[each] * 9, []]
    # A node with a GPU takes up the last place.
    for growth in (
        Growth(node_types=TYPES, max_nodes=1),
        Growth(node_types=TYPES[1:], max_nodes=5),
    ):
        with pytest.raises(NoSuchNodeError):
            wait_for_nodes(need, nodes(GPU_NODE, growth=growth), wait_s=60)
    assert len(requests) == 2


@pytest.mark.parametrize("comes", [True, False])
def test_tasks_wait_for_a_node_without_gpus_and_run_if_none_comes(
    play: Callable[..., list[list[Any]]], caplog: pytest.LogCaptureFixture, comes: bool
) -> None:
    failing = Answer(is_refused=False, is_starting=False, failure="no such machines left")
    requests = play([HEAD, GPU_NODE, *[CPU_NODE] * comes], answer=failing)
    tasks._wait_for_a_node(
        nodes(GPU_NODE, growth=Growth(node_types=TYPES, max_nodes=5)), 1e9, 60 if comes else 0.01
    )
    assert len(requests) == 2
    notes = [record.getMessage() for record in caplog.records]
    assert_notes(notes, *([] if comes else [["0 of 1", failing.failure, "GPUs are used"]]))
    # Where nobody knows whether others can be started, work begins.
    tasks._wait_for_a_node(nodes(GPU_NODE, growth=Growth(node_types=None)), 1e9, 60)
    assert len(requests) == 2


def test_tasks_keep_off_nodes_with_gpus_while_others_can_hold_them(
    play: Callable[..., list[list[Any]]],
) -> None:
    answer = Answer(is_refused=False, is_starting=False)
    play([HEAD, GPU_NODE], answer=answer)
    assert tasks.away_from_gpus({"CPU": 1.0, "memory": 1e9}) == {}
    play([HEAD, {**GPU_NODE, "id": 1.0}, {**GPU_NODE, "id": 2.0}, CPU_NODE], answer=answer)
    [selector] = tasks.away_from_gpus({"CPU": 1.0, "memory": 1e9}).values()
    assert selector == {"ray.io/node-id": "!in(1,2)"}
    assert tasks.away_from_gpus({"CPU": 1.0, "memory": 9e9}) == {}
    play([HEAD, CPU_NODE], answer=answer)
    assert tasks.away_from_gpus({"CPU": 1.0}) == {}


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
