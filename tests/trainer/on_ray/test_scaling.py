"""New groups of workers keep off nodes that are lost, before Ray knows it."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.train

from pipeline.on_ray.nodes import NODE_ID_LABEL
from trainer.on_ray import scaling
from trainer.on_ray.scaling import Elastic, Fixed

ROOM = {"a1": {"CPU": 2.0}, "b2": {"CPU": 1.0}, "c3": {"CPU": 4.0}}


@pytest.fixture(autouse=True)
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three nodes, of which one is about to be shut down and one silent."""
    monkeypatch.setattr(scaling, "_get_draining_nodes", lambda: {"b2": 0})
    monkeypatch.setattr(scaling, "silent_nodes", lambda: {"c3": "10.0.0.8"})
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)


def test_room_of_lost_and_leaving_nodes_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Elastic(ray.train.ScalingConfig(num_workers=(1, 6)))
    reserved = SimpleNamespace(remote=lambda requester, recompute: ROOM)
    coordinator: Any = SimpleNamespace(get_reserved_resources=reserved)
    policy._coordinator_client = SimpleNamespace(_autoscaling_coordinator=coordinator)
    monkeypatch.setattr(policy, "_maybe_send_resource_request", lambda: None)
    assert policy.make_decision_for_non_running_worker_group().num_workers == 2


@pytest.mark.parametrize(("kind", "num_workers"), [(Fixed, 2), (Elastic, (1, 2))])
def test_new_group_is_kept_off_lost_nodes(
    kind: type, num_workers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = kind(ray.train.ScalingConfig(num_workers=num_workers))
    asked = {"scaling_config": policy.scaling_config, "num_workers": 2}
    assert policy.on_controller_start_worker_group(**asked) == {NODE_ID_LABEL: "!in(c3)"}
    monkeypatch.setattr(scaling, "silent_nodes", dict)
    assert policy.on_controller_start_worker_group(**asked) is None
