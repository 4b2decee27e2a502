"""Waiting for the nodes of a cluster; on real ones in `test_slurm.py`."""

from typing import Any

import pytest

from cluster.join import wait_for_nodes
from tests.support.errors import refused


def node(name: str, *, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "NodeManagerHostname": name, "Resources": {"CPU": 2.0, "GPU": 1.0}}


def test_missing_nodes_are_counted_and_those_here_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [node("n1"), node("n2", alive=False), node("n3")])
    with refused("", "2 of 4 nodes", "n1, n3", "0.1 s", remedy=True):
        wait_for_nodes(4, 0.1)


def test_waits_until_all_nodes_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [[node("n1")], [node("n1")], [node("n1"), node("n2")]]
    monkeypatch.setattr("ray.nodes", lambda: answers.pop(0))
    assert "2 nodes have joined, with 4 CPUs and 2 GPUs" in wait_for_nodes(2, 60)
    assert answers == []
