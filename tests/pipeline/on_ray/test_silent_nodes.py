"""Nodes whose processes are gone are found by their ports, before Ray knows it."""

import socket
from typing import Any

import pytest
import ray

from pipeline.on_ray import silent_nodes as module
from pipeline.on_ray.silent_nodes import silent_nodes


def node(name: str, port: int, *, alive: bool = True) -> dict[str, Any]:
    address = {"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port}
    return {"NodeID": name, "Alive": alive, **address}


def test_nodes_that_refuse_or_do_not_answer_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ANSWER_S", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as there,
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        socket.socket() as closed,
        socket.create_connection(full.getsockname()),
    ):
        closed.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in (there, closed, full)]
        nodes = [node(name, port) for name, port in zip("abc", ports, strict=True)]
        nodes.append(node("d", ports[1], alive=False))
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        assert silent_nodes() == {"b": "127.0.0.1", "c": "127.0.0.1"}
